//! `UPRES_CHECK_FINITE=1`: outputs of the ops that are trained through, and their gradients, are looked at, and the first of a pass that is not
//! finite is named on stderr (parameters and their gradients: the error that ends a run names those). Slow: for finding where a run goes wrong.

use std::cell::{Cell, RefCell};

use half::{bf16, f16};

use crate::device::{Device, current_scope};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

thread_local! {
    static ENABLED: Cell<bool> = Cell::new(crate::device::checks_finite());
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A new pass begins: the next find is its first.
pub fn begin() {
    FOUND.with(|found| *found.borrow_mut() = None);
}

/// The first tensor of the pass that was not finite.
pub fn found() -> Option<String> {
    FOUND.with(|found| found.borrow().clone())
}

/// Switches it on or off for this thread.
pub fn enable(on: bool) {
    ENABLED.with(|enabled| enabled.set(on));
}

/// Looks at a tensor: `what` of the op whose range is open.
pub(super) fn look(device: &Device, what: &str, t: &Tensor) {
    if !ENABLED.with(Cell::get) || !device.has_data() || found().is_some() {
        return;
    }
    // A copy that fails is reported by the next op as well.
    if !is_finite(t).unwrap_or(true) {
        let name = format!("{what} of {}, {t:?}", current_scope());
        crate::output::tell(format_args!("first tensor that is not finite: {name}"));
        FOUND.with(|found| *found.borrow_mut() = Some(name));
    }
}

fn is_finite(t: &Tensor) -> Result<bool> {
    Ok(match t.dtype() {
        DType::F32 => t.read::<f32>()?.iter().all(|v| v.is_finite()),
        DType::F16 => t.read::<f16>()?.iter().all(|v| v.is_finite()),
        DType::BF16 => t.read::<bf16>()?.iter().all(|v| v.is_finite()),
        DType::I32 | DType::U8 => true,
    })
}
