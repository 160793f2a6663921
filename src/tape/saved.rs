//! What a rule keeps of its inputs: the tensor, or a way to rematerialise it.
//!
//! Main type: [`Saved`]. Which ops offer the second is in `rematerialise.rs`.

use std::cell::RefCell;
use std::rc::Rc;

use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// An op's output that is not kept: it is recomputed from what the op saves, once for all rules that ask for it.
pub(crate) struct Rematerialised {
    device: Device,
    bytes: usize,
    make: Box<dyn Fn() -> Result<Tensor>>,
    made: RefCell<Option<Tensor>>,
}

/// A value for the backward pass.
pub enum Saved {
    /// The tensor itself.
    Kept(Tensor),
    /// A way to compute the tensor when a rule asks for it.
    #[allow(private_interfaces, reason = "made by the tape alone")]
    Rematerialised(Rc<Rematerialised>),
}

impl Saved {
    /// The value. The first of several holders computes it, the others share it, and the last takes it.
    pub fn get(self) -> Result<Tensor> {
        let value = match self {
            Saved::Kept(t) => return Ok(t),
            Saved::Rematerialised(value) => value,
        };
        let made = value.made.borrow_mut().take();
        let t = match made {
            Some(t) => t,
            None => {
                let _range = value.device.enter("recompute");
                (value.make)()?
            }
        };
        if Rc::strong_count(&value) > 1 {
            *value.made.borrow_mut() = Some(t.clone());
        }
        Ok(t)
    }

    /// Bytes kept alive; 0 for a value that is yet to be computed.
    pub fn bytes(&self) -> usize {
        match self {
            Saved::Kept(t) => t.bytes(),
            Saved::Rematerialised(value) => value.made.borrow().as_ref().map_or(0, |_| value.bytes),
        }
    }
}

impl Rematerialised {
    /// A stand-in for the output `y` of an op, which `make` computes anew to the same bits.
    pub(crate) fn new(y: &Tensor, make: impl Fn() -> Result<Tensor> + 'static) -> Rc<Rematerialised> {
        let (device, bytes) = (y.device().clone(), y.bytes());
        Rc::new(Rematerialised { device, bytes, make: Box::new(make), made: RefCell::new(None) })
    }
}
