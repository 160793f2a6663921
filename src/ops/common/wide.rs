//! f16 and bf16 on the CPU: ops are computed in f32 and what they give is stored in 16 bits. Kernels have their own 16-bit
//! variants.
//!
//! It is there so that a run in half precision can be tested, planned and looked at without a GPU; it saves memory, not time.

use crate::error::Result;
use crate::ops::cast::cast;
use crate::tape::{Tape, Var};
use crate::tensor::DType;

/// Whether an op on x must go through [`run`].
pub(in crate::ops) fn needed(x: &Var) -> bool {
    matches!(x.value().dtype(), DType::F16 | DType::BF16) && !x.device().runs_kernels()
}

/// `f` of the inputs in f32, its output rounded to the type of the first. Kept for the backward pass are the inputs as they are: it
/// makes them f32 again, and runs `f` again ([`Tape::rematerialise`]).
pub(in crate::ops) fn run(
    tape: &mut Tape,
    inputs: &[&Var],
    f: impl Fn(&mut Tape, &[Var]) -> Result<Var> + 'static,
) -> Result<Var> {
    run_to(tape, inputs, inputs[0].value().dtype(), f)
}

/// As [`run`], for a product whose rule does not keep its output: `f` is told whether anybody reads what it gives. Where nobody does, in
/// the backward pass, any finite values of the shape will do, which saves the product.
pub(in crate::ops) fn run_product(
    tape: &mut Tape,
    inputs: &[&Var],
    f: impl Fn(&mut Tape, &[Var], bool) -> Result<Var> + 'static,
) -> Result<Var> {
    run(tape, inputs, move |tape, v| {
        let is_read = !tape.output_is_unread();
        f(tape, v, is_read)
    })
}

/// As [`run`], with an output of another type.
pub(in crate::ops) fn run_to(
    tape: &mut Tape,
    inputs: &[&Var],
    dtype: DType,
    f: impl Fn(&mut Tape, &[Var]) -> Result<Var> + 'static,
) -> Result<Var> {
    tape.rematerialise(inputs, move |tape, inputs| {
        let wide = inputs.iter().map(|v| cast(tape, v, DType::F32)).collect::<Result<Vec<_>>>()?;
        let y = f(tape, &wide)?;
        drop(wide);
        cast(tape, &y, dtype)
    })
}
