//! The autograd tape: creation order is topological order, a rule is a struct, `backward` is one reverse scan that
//! consumes the tape and frees saved memory as it goes. A branch that ends in losses runs backward at once ([`Tape::branch`]);
//! a part may be rematerialised instead of kept ([`Tape::rematerialise`]).
//!
//! Main types: [`Tape`], [`Var`], [`Param`], [`Backward`].

mod param;
mod rematerialise;
mod saved;
#[cfg(test)]
mod tests;
pub mod watch;

use std::rc::Rc;

pub use param::{Param, Role};
pub(crate) use saved::Rematerialised;
pub use saved::Saved;

use crate::device::Device;
use crate::error::Result;
use crate::tensor::elementwise;
use crate::tensor::{DType, Tensor};

/// A tensor and its place on a tape, if it has one. Only [`Tape`] makes them.
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
    /// How to recompute the value, if its op offers it.
    rematerialised: Option<Rc<Rematerialised>>,
}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.node, self.value)
    }
}

impl Var {
    /// The data.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.value.device()
    }

    /// The value, to be saved for a backward pass.
    pub fn saved(&self) -> Saved {
        match &self.rematerialised {
            Some(value) => Saved::Rematerialised(value.clone()),
            None => Saved::Kept(self.value.clone()),
        }
    }

    /// True if a gradient will be asked for.
    pub fn needs_grad(&self) -> bool {
        self.node.is_some()
    }
}

/// How an op's output gradient becomes its inputs' gradients. Holds what the forward pass saved.
pub trait Backward {
    /// Name of the op.
    fn op(&self) -> &'static str;
    /// Bytes kept alive for the backward pass.
    fn saved_bytes(&self) -> usize;
    /// Adds to the gradients of the inputs. `dy` has the output's shape and may be reused if it is unique.
    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()>;
}

enum Kind {
    Rule(Box<dyn Backward>),
    Param(Param),
    Leaf,
}

struct Node {
    kind: Kind,
    inputs: Vec<Option<usize>>,
    scope: Option<Rc<str>>,
}

/// Records what a backward pass needs.
pub struct Tape {
    device: Device,
    nodes: Vec<Node>,
    recording: bool,
    scopes: Vec<Rc<str>>,
    /// Gradient of every loss, where it is known before the backward pass.
    seed: Option<Tensor>,
    /// Gradients that branches gave to nodes.
    early: Vec<Option<Tensor>>,
    /// See [`Tape::is_rematerialising`].
    rematerialising: bool,
    /// See [`Tape::output_is_unread`].
    output_unread: bool,
    /// See [`Tape::derive_once`].
    derived: Vec<(Param, Var)>,
    /// See [`Tape::rematerialise_outputs`].
    rematerialises_outputs: bool,
}

impl Tape {
    /// A tape that records.
    pub fn new(device: &Device) -> Tape {
        Tape {
            device: device.clone(),
            nodes: Vec::new(),
            recording: true,
            scopes: Vec::new(),
            seed: None,
            early: Vec::new(),
            rematerialising: false,
            output_unread: false,
            derived: Vec::new(),
            rematerialises_outputs: false,
        }
    }

    /// A tape of a training step, all of whose losses have the gradient `seed` `[1]`: [`Tape::branch`] can run backward at once.
    pub fn training(device: &Device, seed: Tensor) -> Tape {
        Tape { seed: Some(seed), ..Tape::new(device) }
    }

    /// A tape that records nothing: the same `forward` code, without memory kept for gradients.
    pub fn inference(device: &Device) -> Tape {
        Tape { recording: false, ..Tape::new(device) }
    }

    /// Where ops run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names what `f` runs: in the memory plan, in profiles and in errors, forward and backward.
    pub fn scope<R>(&mut self, name: &str, f: impl FnOnce(&mut Tape) -> R) -> R {
        let _scope = self.device.enter_module(name);
        let path = self.scopes.last().map_or_else(|| name.to_string(), |top| format!("{top}/{name}"));
        self.scopes.push(path.into());
        let out = f(self);
        self.scopes.pop();
        out
    }

    fn push(&mut self, kind: Kind, inputs: Vec<Option<usize>>) -> usize {
        self.nodes.push(Node { kind, inputs, scope: self.scopes.last().cloned() });
        self.nodes.len() - 1
    }

    /// A value whose gradient is wanted in [`Grads`].
    pub fn leaf(&mut self, value: Tensor) -> Var {
        let node = self.recording.then(|| self.push(Kind::Leaf, Vec::new()));
        Var { value, node, rematerialised: None }
    }

    /// A value without gradient.
    pub fn constant(&mut self, value: Tensor) -> Var {
        Var { value, node: None, rematerialised: None }
    }

    /// A parameter: a leaf that adds to the parameter's own gradient, or a constant if it is frozen.
    pub fn param(&mut self, param: &Param) -> Var {
        let node = (self.recording && param.is_trainable()).then(|| self.push(Kind::Param(param.clone()), Vec::new()));
        Var { value: param.value(), node, rematerialised: None }
    }

    /// What `make(tape, parameter)` derives from a parameter, such as a cast: made once on a tape for each element type `dtype`, however
    /// often it is used, so that its gradient goes back through one op.
    pub fn derive_once(
        &mut self,
        param: &Param,
        dtype: DType,
        make: impl FnOnce(&mut Tape, &Var) -> Result<Var>,
    ) -> Result<Var> {
        if let Some((_, v)) = self.derived.iter().find(|(p, v)| p.is(param) && v.value.dtype() == dtype) {
            return Ok(v.clone());
        }
        let whole = self.param(param);
        let v = make(self, &whole)?;
        self.derived.push((param.clone(), v.clone()));
        Ok(v)
    }

    /// The output of a differentiable op. The rule is dropped if no input needs a gradient.
    pub fn record<const N: usize>(&mut self, inputs: [&Var; N], y: Tensor, rule: impl Backward + 'static) -> Var {
        self.record_all(&inputs, y, rule)
    }

    /// As [`Tape::record`], for ops with any number of inputs.
    pub fn record_all(&mut self, inputs: &[&Var], y: Tensor, rule: impl Backward + 'static) -> Var {
        if !self.recording || inputs.iter().all(|v| v.node.is_none()) {
            return Var { value: y, node: None, rematerialised: None };
        }
        watch::look(&self.device, "output", &y);
        let node = self.push(Kind::Rule(Box::new(rule)), inputs.iter().map(|v| v.node).collect());
        Var { value: y, node: Some(node), rematerialised: None }
    }

    /// True if the rule of an op on these inputs will be kept: an op may skip what only its gradient needs.
    pub fn will_record(&self, inputs: &[&Var]) -> bool {
        self.recording && inputs.iter().any(|v| v.node.is_some())
    }

    /// Runs `f(tape, inputs)`: a part of the network that ends in losses `[1]`, which it returns with whatever else it found that no
    /// gradient goes through. On a tape that knows the losses' gradient ([`Tape::training`]) its backward pass runs here, so
    /// that what it saved is gone before the next part begins: parameters have their gradients, those of the inputs wait for
    /// [`Tape::backward`] of this tape, and the losses come back as constants. On another tape `f` just runs.
    ///
    /// So the memory of several heads on one pyramid is that of the largest of them, not of all, for no additional work. `f` may use no other
    /// variables of this tape than `inputs`, and parameters. Names in plans and profiles become `rpn/backward/conv2d`.
    pub fn branch<R>(
        &mut self,
        inputs: &[Var],
        f: impl FnOnce(&mut Tape, &[Var]) -> Result<(Vec<Var>, R)>,
    ) -> Result<(Vec<Var>, R)> {
        let Some(seed) = self.seed.clone().filter(|_| self.recording) else { return f(self, inputs) };
        let mut tape =
            Tape { rematerialises_outputs: self.rematerialises_outputs, ..Tape::training(&self.device, seed.clone()) };
        let inner: Vec<Var> = inputs.iter().map(|v| tape.stand_in(v)).collect();
        let (losses, rest) = f(&mut tape, &inner)?;
        let roots = losses.iter().map(|loss| (loss.clone(), seed.clone())).collect();
        let losses = losses.into_iter().map(|loss| self.constant(loss.value)).collect();
        let leaves: Vec<Option<usize>> = inner.into_iter().map(|v| v.node).collect();
        for (n, g) in tape.backward(roots)?.0 {
            let input = leaves.iter().position(|leaf| *leaf == Some(n)).and_then(|i| inputs[i].node);
            let node = input.unwrap_or_else(|| unreachable!("leaves were made of inputs with nodes"));
            if self.early.len() <= node {
                self.early.resize_with(node + 1, || None);
            }
            accumulate(&mut self.early[node], g)?;
        }
        Ok((losses, rest))
    }

    /// Whether [`Tape::branch`] runs backward at once.
    pub fn branches(&self) -> bool {
        self.seed.is_some() && self.recording
    }

    /// Bytes kept for the backward pass, shared tensors counted once for each rule that holds them.
    pub fn saved_bytes(&self) -> usize {
        self.nodes.iter().map(|n| if let Kind::Rule(r) = &n.kind { r.saved_bytes() } else { 0 }).sum()
    }

    /// Runs the rules in reverse from `roots`, each with its gradient. Parameters' gradients are added to the parameters,
    /// leaves' come back.
    pub fn backward(self, roots: Vec<(Var, Tensor)>) -> Result<Grads> {
        let Tape { mut nodes, early: mut grads, device, derived, .. } = self;
        drop(derived); // rules hold what they need
        grads.resize_with(nodes.len(), || None);
        let mut leaves = Vec::new();
        let all = device.enter("backward");
        for (var, dy) in roots {
            dy.expect_shape("backward: gradient of the root", var.shape())?;
            if let Some(n) = var.node {
                accumulate(&mut grads[n], dy)?;
            }
        }
        while let Some(node) = nodes.pop() {
            let Some(dy) = grads.pop().flatten() else { continue };
            match node.kind {
                Kind::Rule(rule) => {
                    let _module = node.scope.as_ref().map(|s| device.enter_module(s));
                    let _op = device.enter(rule.op());
                    watch::look(&device, "gradient of the output", &dy);
                    let mut sink = Sink { inputs: &node.inputs, nodes: &nodes, grads: &mut grads };
                    rule.backward(dy, &mut sink)?;
                }
                Kind::Leaf => leaves.push((nodes.len(), dy)),
                Kind::Param(p) => p.accumulate(&dy)?,
            }
        }
        drop(all);
        Ok(Grads(leaves))
    }
}

fn accumulate(slot: &mut Option<Tensor>, g: Tensor) -> Result<()> {
    *slot = Some(match slot.take() {
        None => g,
        Some(mut old) if old.is_unique() => {
            elementwise::add_assign(&mut old, &g)?;
            old
        }
        Some(old) if g.is_unique() => {
            let mut g = g;
            elementwise::add_assign(&mut g, &old)?;
            g
        }
        Some(old) => {
            let mut sum = Tensor::empty(old.device(), old.shape(), old.dtype())?;
            elementwise::copy(&mut sum, &old)?;
            elementwise::add_assign(&mut sum, &g)?;
            sum
        }
    });
    Ok(())
}

/// Gradients of the leaves made by [`Tape::leaf`].
pub struct Grads(Vec<(usize, Tensor)>);

impl Grads {
    /// The gradient of a leaf; none if the roots do not depend on it.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        let n = leaf.node?;
        self.0.iter().find(|(m, _)| *m == n).map(|(_, g)| g)
    }
}

/// Where a rule puts its inputs' gradients.
pub struct Sink<'a> {
    inputs: &'a [Option<usize>],
    nodes: &'a [Node],
    grads: &'a mut Vec<Option<Tensor>>,
}

impl Sink<'_> {
    /// True if the gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.inputs.get(i).is_some_and(|n| n.is_some())
    }

    /// Adds to the gradient of input `i`; dropped if it is not wanted. The first gradient is moved, later ones are
    /// added in place.
    pub fn add(&mut self, i: usize, g: Tensor) -> Result<()> {
        let Some(n) = self.inputs.get(i).copied().flatten() else { return Ok(()) };
        if let Kind::Param(p) = &self.nodes[n].kind {
            return p.accumulate(&g);
        }
        accumulate(&mut self.grads[n], g)
    }

    /// What has been added to the gradient of input `i` so far, which becomes nothing.
    fn take(&mut self, i: usize) -> Option<Tensor> {
        self.inputs.get(i).copied().flatten().and_then(|n| self.grads[n].take())
    }

    /// Lets `f` write the gradient of input `i` where it belongs: `f(target, accumulate)` overwrites the target, or adds to
    /// it if `accumulate`. For a parameter the target is the parameter's gradient itself. Skipped if it is not wanted.
    pub fn write(
        &mut self,
        i: usize,
        device: &Device,
        shape: &[usize],
        dtype: DType,
        f: impl FnOnce(&mut Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        let Some(n) = self.inputs.get(i).copied().flatten() else { return Ok(()) };
        if let Kind::Param(p) = &self.nodes[n].kind {
            return p.write_grad(f);
        }
        let mut g = Tensor::empty(device, shape, dtype)?;
        f(&mut g, false)?;
        accumulate(&mut self.grads[n], g)
    }
}
