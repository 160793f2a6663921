//! Parts of the network that are computed again for their backward pass instead of being kept (Chen et al. 2016,
//! arXiv 1604.06174).

use super::{Backward, Kind, Sink, Tape, Var};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

impl Tape {
    /// Runs `f(tape, x)`, a part of the network with one input and one output, and keeps of it only `x`: the backward pass runs
    /// `f` again, then its rules. For the time of one more forward pass, what `f` saves lives only while its own backward pass runs.
    ///
    /// Values and gradients are those of `f` run plainly, to the bit: ops are deterministic, what is dropped at random is drawn from
    /// counters, and batch norm moves its running statistics in the first run alone ([`Tape::is_recomputing`]). `f` owns what it
    /// uses, and uses no variable of this tape but `x`.
    pub fn recompute(&mut self, x: &Var, f: impl Fn(&mut Tape, &Var) -> Result<Var> + 'static) -> Result<Var> {
        if !self.recording {
            return f(self, x);
        }
        // Recorded and thrown away: so it is known whether a gradient is wanted, and ops run as they will run again.
        let mut inner = Tape::new(&self.device);
        let start = inner.stand_in(x);
        let y = f(&mut inner, &start)?;
        if !y.needs_grad() {
            return Ok(self.constant(y.value));
        }
        drop(inner);
        let rule = RecomputeBwd { x: x.value.clone(), needs_x: x.needs_grad(), f: Box::new(f) };
        let node = self.push(Kind::Rule(Box::new(rule)), vec![x.node]);
        Ok(Var { value: y.value, node: Some(node) })
    }

    /// Whether this run is the second one of [`Tape::recompute`]: what a forward pass changes besides its outputs has been changed.
    pub fn is_recomputing(&self) -> bool {
        self.recomputing
    }

    /// A variable of another tape as one of this: a leaf where a gradient is wanted.
    pub(super) fn stand_in(&mut self, of: &Var) -> Var {
        if of.needs_grad() { self.leaf(of.value.clone()) } else { of.clone() }
    }
}

type Part = dyn Fn(&mut Tape, &Var) -> Result<Var>;

struct RecomputeBwd {
    x: Tensor,
    needs_x: bool,
    f: Box<Part>,
}

impl Backward for RecomputeBwd {
    fn op(&self) -> &'static str {
        "recompute"
    }

    fn saved_bytes(&self) -> usize {
        self.x.bytes()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let RecomputeBwd { x, needs_x, f } = *self;
        let device: Device = dy.device().clone();
        let mut tape = Tape { recomputing: true, ..Tape::new(&device) };
        let x = if needs_x { tape.leaf(x) } else { tape.constant(x) };
        if needs_x {
            tape.early.push(sink.take(0)); // what others gave to x comes first, as it would without this detour
        }
        let y = f(&mut tape, &x)?;
        drop((f, x));
        let leaf = tape.backward(vec![(y, dy)])?.0.pop(); // x is the only one
        leaf.map_or(Ok(()), |(_, dx)| sink.add(0, dx))
    }
}
