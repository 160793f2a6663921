//! What a rule keeps of its inputs: the tensor, or how to make it again.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Tape, Var};
use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// A value that its op makes again from what it keeps, once for all rules that ask for it.
pub(crate) struct Remade {
    device: Device,
    bytes: usize,
    make: Box<dyn Fn() -> Result<Tensor>>,
    made: RefCell<Option<Tensor>>,
}

/// A value for the backward pass.
pub enum Saved {
    /// Is kept.
    Kept(Tensor),
    /// Is made when it is asked for.
    #[allow(private_interfaces, reason = "made by the tape alone")]
    Again(Rc<Remade>),
}

impl Saved {
    /// The value. Of several holders the first makes it, and the last takes it away.
    pub fn get(self) -> Result<Tensor> {
        let again = match self {
            Saved::Kept(t) => return Ok(t),
            Saved::Again(again) => again,
        };
        let made = again.made.borrow_mut().take();
        let t = match made {
            Some(t) => t,
            None => {
                let _again = again.device.enter("recompute");
                (again.make)()?
            }
        };
        if Rc::strong_count(&again) > 1 {
            *again.made.borrow_mut() = Some(t.clone());
        }
        Ok(t)
    }

    /// Bytes that it keeps alive.
    pub fn bytes(&self) -> usize {
        match self {
            Saved::Kept(t) => t.bytes(),
            Saved::Again(again) => again.made.borrow().as_ref().map_or(0, |_| again.bytes),
        }
    }
}

impl Var {
    /// The value, for a rule.
    pub fn saved(&self) -> Saved {
        match &self.again {
            Some(again) => Saved::Again(again.clone()),
            None => Saved::Kept(self.value.clone()),
        }
    }
}

impl Tape {
    /// From here on, ops whose output can be made again from what they keep anyway, by reading it once more, let others keep the way to
    /// make it instead of the output.
    pub fn keep_less(&mut self) {
        self.keeps_less = true;
    }

    /// Runs `f` as after [`Tape::keep_less`]: for a part whose output the next op does not keep, as pooling.
    pub fn keeping_less<R>(&mut self, f: impl FnOnce(&mut Tape) -> R) -> R {
        let before = std::mem::replace(&mut self.keeps_less, true);
        let out = f(self);
        self.keeps_less = before;
        out
    }

    /// Whether [`Tape::keep_less`] was asked for, and rules are kept at all.
    pub fn keeps_less(&self) -> bool {
        self.keeps_less && self.recording
    }

    /// As [`Tape::record`], of an op that can make its output again.
    pub(crate) fn record_remade(
        &mut self,
        inputs: &[&Var],
        y: Tensor,
        remade: Rc<Remade>,
        rule: impl super::Backward + 'static,
    ) -> Var {
        Var { again: Some(remade), ..self.record_all(inputs, y, rule) }
    }
}

impl Remade {
    /// Of an op's output.
    pub(crate) fn new(y: &Tensor, make: impl Fn() -> Result<Tensor> + 'static) -> Rc<Remade> {
        let (device, bytes) = (y.device().clone(), y.bytes());
        Rc::new(Remade { device, bytes, make: Box::new(make), made: RefCell::new(None) })
    }
}
