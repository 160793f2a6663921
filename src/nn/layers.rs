//! Convolution, linear and batch norm layers.

use super::{Builder, Init};
use crate::error::Result;
use crate::ops::batch_norm_relu::{BnMode, batch_norm_relu};
use crate::ops::conv2d::{Activation, conv2d, conv2d_live};
use crate::ops::linear::linear;
use crate::tape::{Param, Role, Tape, Var};
use crate::tensor::Tensor;

/// A convolution.
pub struct Conv2d {
    weight: Param,
    bias: Option<Param>,
    stride_px: usize,
    pad: usize,
}

impl Conv2d {
    /// `k`×`k`, padded to keep the size at stride 1; `bias` starts at 0.
    pub fn new(
        b: &mut Builder<'_>,
        i: usize,
        o: usize,
        k: usize,
        stride_px: usize,
        bias: bool,
        init: Init,
    ) -> Result<Self> {
        let weight = b.param("weight", Role::Weight, &[o, k, k, i], init)?;
        let bias = bias.then(|| b.param("bias", Role::Bias, &[o], Init::Constant(0.0))).transpose()?;
        Ok(Conv2d { weight, bias, stride_px, pad: k / 2 })
    }

    /// `[N,H,W,I]` to `[N,OH,OW,O]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var, activation: Activation) -> Result<Var> {
        let w = tape.param(&self.weight);
        let b = self.bias.as_ref().map(|b| tape.param(b));
        conv2d(tape, x, &w, b.as_ref(), self.stride_px, self.pad, activation)
    }

    /// The same where only the first `counts[b]` images of each group count: see [`conv2d_live`].
    pub fn forward_live(&self, tape: &mut Tape, x: &Var, activation: Activation, counts: &Tensor) -> Result<Var> {
        let w = tape.param(&self.weight);
        let b = self.bias.as_ref().map(|b| tape.param(b));
        conv2d_live(tape, x, &w, b.as_ref(), self.stride_px, self.pad, activation, counts)
    }
}

/// A fully connected layer.
pub struct Linear {
    weight: Param,
    bias: Param,
}

impl Linear {
    /// `bias` starts at 0.
    pub fn new(b: &mut Builder<'_>, i: usize, o: usize, init: Init) -> Result<Self> {
        let weight = b.param("weight", Role::Weight, &[o, i], init)?;
        let bias = b.param("bias", Role::Bias, &[o], Init::Constant(0.0))?;
        Ok(Linear { weight, bias })
    }

    /// `[M,I]` to `[M,O]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var, activation: Activation) -> Result<Var> {
        let (w, b) = (tape.param(&self.weight), tape.param(&self.bias));
        linear(tape, x, &w, Some(&b), activation)
    }
}

/// Whether batch norm uses and updates the batch's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormMode {
    /// Batch statistics; the running ones follow.
    Train,
    /// Running statistics, untouched.
    Frozen,
}

/// Batch norm, with the residual sum and the ReLU that follow it.
pub struct BatchNorm {
    gamma: Param,
    beta: Param,
    mean: Param,
    var: Param,
    eps: f32,
    momentum: f32,
}

impl BatchNorm {
    /// Over `c` channels; `gamma` is the initial scale.
    pub fn new(b: &mut Builder<'_>, c: usize, eps: f32, momentum: f32, gamma: f32) -> Result<Self> {
        Ok(BatchNorm {
            gamma: b.param("weight", Role::Norm, &[c], Init::Constant(gamma))?,
            beta: b.param("bias", Role::Norm, &[c], Init::Constant(0.0))?,
            mean: b.param("running_mean", Role::Statistic, &[c], Init::Constant(0.0))?,
            var: b.param("running_var", Role::Statistic, &[c], Init::Constant(1.0))?,
            eps,
            momentum,
        })
    }

    /// `relu(bn(x) + residual)`; both extras are optional.
    pub fn forward(&self, tape: &mut Tape, x: &Var, residual: Option<&Var>, relu: bool, mode: NormMode) -> Result<Var> {
        let (gamma, beta) = (tape.param(&self.gamma), tape.param(&self.beta));
        let mode = match mode {
            NormMode::Train => BnMode::Train { momentum: self.momentum },
            NormMode::Frozen => BnMode::Frozen,
        };
        batch_norm_relu(tape, x, &gamma, &beta, (&self.mean, &self.var), mode, self.eps, residual, relu)
    }
}
