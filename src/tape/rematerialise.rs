//! Rematerialisation: activations that the backward pass recomputes instead of keeping them (Chen et al. 2016,
//! arXiv 1604.06174). Results are the same to the bit.
//!
//! There are two ways. [`Tape::rematerialise`] keeps only the inputs of a part of the network and runs the part again. Outputs of cheap ops
//! ([`Tape::rematerialise_outputs`]) are recomputed one by one from what the op saves anyway.

use std::rc::Rc;

use super::saved::{Rematerialised, Saved};
use super::{Backward, Kind, Sink, Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

impl Tape {
    /// Runs `f(tape, inputs)`, a part of the network with one output, and keeps only its inputs. The backward pass runs `f` once
    /// more and then its rules, so what `f` saves lives only during its own backward pass. Costs one more forward pass.
    ///
    /// Values and gradients are those of a plain run of `f`, to the bit: ops are deterministic, random numbers come from counters, and
    /// batch norm moves its running statistics in the first run alone ([`Tape::is_rematerialising`]). `f` owns what it uses, and uses no
    /// variable of this tape but the inputs.
    pub fn rematerialise(
        &mut self,
        inputs: &[&Var],
        f: impl Fn(&mut Tape, &[Var]) -> Result<Var> + 'static,
    ) -> Result<Var> {
        if !self.recording {
            return f(self, &inputs.iter().map(|v| (*v).clone()).collect::<Vec<_>>());
        }
        // Recorded and thrown away: this tells whether a gradient is wanted, and ops run as they will in the second run.
        let mut inner = Tape { rematerialising: self.rematerialising, ..Tape::new(&self.device) };
        let starts: Vec<Var> = inputs.iter().map(|v| inner.stand_in(v)).collect();
        let y = f(&mut inner, &starts)?;
        if !y.needs_grad() {
            return Ok(self.constant(y.value));
        }
        drop((inner, starts));
        let kept = inputs.iter().map(|v| (v.saved(), v.needs_grad())).collect();
        let rule = RematerialiseBwd { inputs: kept, f: Box::new(f) };
        let node = self.push(Kind::Rule(Box::new(rule)), inputs.iter().map(|v| v.node).collect());
        Ok(Var { value: y.value, node: Some(node), rematerialised: None })
    }

    /// Whether this is the second run of [`Tape::rematerialise`]. Side effects of the forward pass (running statistics) happened in
    /// the first run and must not happen again.
    pub fn is_rematerialising(&self) -> bool {
        self.rematerialising
    }

    /// Whether only rules that save the output read its value: true in the second run of the innermost [`Tape::rematerialise`]. An op
    /// whose rule does not save its output may then leave any finite values in it.
    pub(crate) fn output_is_unread(&self) -> bool {
        self.output_unread
    }

    /// From now on, an op that can cheaply recompute its output from what it saves (batch norm with ReLU, layer norm, GELU) gives later
    /// ops a recipe for it instead of the tensor.
    pub fn rematerialise_outputs(&mut self) {
        self.rematerialises_outputs = true;
    }

    /// Runs `f` with [`Tape::rematerialise_outputs`] on: for a part whose output the next op does not keep, like pooling.
    pub fn with_rematerialised_outputs<R>(&mut self, f: impl FnOnce(&mut Tape) -> R) -> R {
        let before = std::mem::replace(&mut self.rematerialises_outputs, true);
        let out = f(self);
        self.rematerialises_outputs = before;
        out
    }

    /// Whether ops should offer recipes for their outputs: [`Tape::rematerialise_outputs`] is on, and rules are kept at all.
    pub fn rematerialises_outputs(&self) -> bool {
        self.rematerialises_outputs && self.recording
    }

    /// Like [`Tape::record`], for an op that offers a recipe for its output.
    pub(crate) fn record_rematerialised(
        &mut self,
        inputs: &[&Var],
        y: Tensor,
        recipe: Rc<Rematerialised>,
        rule: impl Backward + 'static,
    ) -> Var {
        Var { rematerialised: Some(recipe), ..self.record_all(inputs, y, rule) }
    }

    /// A variable of another tape, as one of this tape: a leaf if its gradient is wanted.
    pub(super) fn stand_in(&mut self, of: &Var) -> Var {
        if of.needs_grad() { self.leaf(of.value.clone()) } else { of.clone() }
    }
}

type Part = dyn Fn(&mut Tape, &[Var]) -> Result<Var>;

struct RematerialiseBwd {
    /// Each input, and whether its gradient is wanted.
    inputs: Vec<(Saved, bool)>,
    f: Box<Part>,
}

impl Backward for RematerialiseBwd {
    fn op(&self) -> &'static str {
        "recompute"
    }

    /// What `f` owns (boxes and counts, some KiB) is not counted.
    fn saved_bytes(&self) -> usize {
        self.inputs.iter().map(|(x, _)| x.bytes()).sum()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let RematerialiseBwd { inputs, f } = *self;
        let mut tape = Tape { rematerialising: true, output_unread: true, ..Tape::new(dy.device()) };
        let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].1).collect();
        // Gradients that the inputs have already come first, as in a plain run: sums keep their order.
        tape.early = wanted.iter().map(|&i| sink.take(i)).collect();
        let mut starts = Vec::with_capacity(inputs.len());
        for (x, wanted) in inputs {
            let x = x.get()?;
            starts.push(if wanted { tape.leaf(x) } else { tape.constant(x) });
        }
        let y = f(&mut tape, &starts)?;
        drop((f, starts));
        // The leaves are the first nodes, in the order of the inputs.
        tape.backward(vec![(y, dy)])?.0.into_iter().try_for_each(|(leaf, dx)| sink.add(wanted[leaf], dx))
    }
}
