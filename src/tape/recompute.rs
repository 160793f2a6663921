//! Parts of the network that are computed again for their backward pass instead of being kept (Chen et al. 2016,
//! arXiv 1604.06174).

use super::{Backward, Kind, Saved, Sink, Tape, Var};
use crate::error::Result;
use crate::tensor::Tensor;

impl Tape {
    /// Runs `f(tape, inputs)`, a part of the network with one output, and keeps of it only the inputs: the backward pass runs `f`
    /// again, then its rules. For the time of one more forward pass, what `f` saves lives only while its own backward pass runs.
    ///
    /// Values and gradients are those of `f` run plainly, to the bit: ops are deterministic, what is dropped at random is drawn from
    /// counters, and batch norm moves its running statistics in the first run alone ([`Tape::is_recomputing`]). `f` owns what it
    /// uses, and uses no variable of this tape but the inputs.
    pub fn recompute(
        &mut self,
        inputs: &[&Var],
        f: impl Fn(&mut Tape, &[Var]) -> Result<Var> + 'static,
    ) -> Result<Var> {
        if !self.recording {
            return f(self, &inputs.iter().map(|v| (*v).clone()).collect::<Vec<_>>());
        }
        // Recorded and thrown away: so it is known whether a gradient is wanted, and ops run as they will run again.
        let mut inner = Tape { recomputing: self.recomputing, ..Tape::new(&self.device) };
        let starts: Vec<Var> = inputs.iter().map(|v| inner.stand_in(v)).collect();
        let y = f(&mut inner, &starts)?;
        if !y.needs_grad() {
            return Ok(self.constant(y.value));
        }
        drop((inner, starts));
        let kept = inputs.iter().map(|v| (v.saved(), v.needs_grad())).collect();
        let rule = RecomputeBwd { inputs: kept, f: Box::new(f) };
        let node = self.push(Kind::Rule(Box::new(rule)), inputs.iter().map(|v| v.node).collect());
        Ok(Var { value: y.value, node: Some(node), again: None })
    }

    /// Whether this run is the second one of [`Tape::recompute`]: what a forward pass changes besides its outputs has been changed.
    pub fn is_recomputing(&self) -> bool {
        self.recomputing
    }

    /// Whether this is the second run of the innermost [`Tape::recompute`]: of its output nobody reads the value, but the rules that
    /// keep it.
    pub(crate) fn is_run_for_rules(&self) -> bool {
        self.for_rules
    }

    /// A variable of another tape as one of this: a leaf where a gradient is wanted.
    pub(super) fn stand_in(&mut self, of: &Var) -> Var {
        if of.needs_grad() { self.leaf(of.value.clone()) } else { of.clone() }
    }
}

type Part = dyn Fn(&mut Tape, &[Var]) -> Result<Var>;

struct RecomputeBwd {
    /// Each with whether its gradient is wanted.
    inputs: Vec<(Saved, bool)>,
    f: Box<Part>,
}

impl Backward for RecomputeBwd {
    fn op(&self) -> &'static str {
        "recompute"
    }

    /// Without what `f` owns: boxes and counts, some KiB.
    fn saved_bytes(&self) -> usize {
        self.inputs.iter().map(|(x, _)| x.bytes()).sum()
    }

    fn backward(self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let RecomputeBwd { inputs, f } = *self;
        let mut tape = Tape { recomputing: true, for_rules: true, ..Tape::new(dy.device()) };
        let wanted: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].1).collect();
        // What others gave to the inputs comes first, as it would without this detour: sums keep their order.
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
