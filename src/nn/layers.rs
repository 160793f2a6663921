//! Convolution, linear, batch norm and layer norm layers. Parameters are f32; the weights of convolutions and linear
//! layers are cast to the type of the activations that they are multiplied with.

use serde::{Deserialize, Serialize};

use super::init::Init;
use super::store::Builder;
use crate::error::Result;
use crate::ops::batch_norm_relu::{BatchNormRelu, BnMode, batch_norm_relu};
use crate::ops::cast::cast;
use crate::ops::conv2d::{Activation, conv2d, conv2d_live};
use crate::ops::deconv2x2::deconv2x2;
use crate::ops::layer_norm::layer_norm;
use crate::ops::linear::{linear, linear_last};
use crate::ops::select_linear::select_linear;
use crate::tape::{Param, Role, Tape, Var};
use crate::tensor::{DType, Tensor};

/// A parameter as a variable of type `dtype`, cast at most once on a tape.
pub(crate) fn param_as(tape: &mut Tape, param: &Param, dtype: DType) -> Result<Var> {
    if param.value().dtype() == dtype {
        return Ok(tape.param(param));
    }
    tape.derive_once(param, dtype, |tape, whole| cast(tape, whole, dtype))
}

/// A convolution.
pub struct Conv2d {
    weight: Param,
    bias: Option<Param>,
    stride_px: usize,
    pad: usize,
}

/// The shape and initial values of a [`Conv2d`]. The default is 1×1 at stride 1 with a bias that starts at 0.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    c_in: usize,
    c_out: usize,
    init: Init,
    kernel: usize,
    stride_px: usize,
    /// Initial value of the bias; `None`: the layer has no bias.
    bias: Option<f32>,
}

impl ConvSpec {
    /// A 1×1 convolution from `c_in` to `c_out` channels, with weights from `init`.
    pub fn new(c_in: usize, c_out: usize, init: Init) -> ConvSpec {
        ConvSpec { c_in, c_out, init, kernel: 1, stride_px: 1, bias: Some(0.0) }
    }

    /// Sets the kernel to `side`×`side`, with the padding that keeps the map's size at stride 1.
    pub fn kernel(self, side: usize) -> ConvSpec {
        ConvSpec { kernel: side, ..self }
    }

    /// Sets the stride.
    pub fn stride(self, stride_px: usize) -> ConvSpec {
        ConvSpec { stride_px, ..self }
    }

    /// Gives the layer a bias that starts at `value`.
    pub fn bias(self, value: f32) -> ConvSpec {
        ConvSpec { bias: Some(value), ..self }
    }

    /// Removes the bias.
    pub fn no_bias(self) -> ConvSpec {
        ConvSpec { bias: None, ..self }
    }
}

impl Conv2d {
    /// A layer with initial values.
    pub fn new(b: &mut Builder<'_>, spec: ConvSpec) -> Result<Self> {
        let ConvSpec { c_in, c_out, init, kernel, stride_px, bias } = spec;
        let weight = b.param("weight", Role::Weight, &[c_out, kernel, kernel, c_in], init)?;
        let bias = bias.map(|value| b.param("bias", Role::Bias, &[c_out], Init::Constant(value))).transpose()?;
        Ok(Conv2d { weight, bias, stride_px, pad: kernel / 2 })
    }

    /// `[N,H,W,I]` to `[N,OH,OW,O]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var, activation: Activation) -> Result<Var> {
        let w = param_as(tape, &self.weight, x.value().dtype())?;
        let b = self.bias.as_ref().map(|b| tape.param(b));
        conv2d(tape, x, &w, b.as_ref(), self.stride_px, self.pad, activation)
    }

    /// Like [`Conv2d::forward`] for a padded batch: only the first `counts[b]` images of each group are valid, and the
    /// others may be skipped (see [`conv2d_live`]).
    pub fn forward_live(&self, tape: &mut Tape, x: &Var, activation: Activation, counts: &Tensor) -> Result<Var> {
        let w = param_as(tape, &self.weight, x.value().dtype())?;
        let b = self.bias.as_ref().map(|b| tape.param(b));
        conv2d_live(tape, x, &w, b.as_ref(), self.stride_px, self.pad, activation, counts)
    }
}

/// A fully connected layer.
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// `bias` starts at 0.
    pub fn new(b: &mut Builder<'_>, i: usize, o: usize, init: Init) -> Result<Self> {
        let weight = b.param("weight", Role::Weight, &[o, i], init)?;
        let bias = Some(b.param("bias", Role::Bias, &[o], Init::Constant(0.0))?);
        Ok(Linear { weight, bias })
    }

    /// Without a bias.
    pub fn without_bias(b: &mut Builder<'_>, i: usize, o: usize, init: Init) -> Result<Self> {
        Ok(Linear { weight: b.param("weight", Role::Weight, &[o, i], init)?, bias: None })
    }

    /// The bias, if the layer has one.
    pub fn bias(&self, tape: &mut Tape) -> Option<Var> {
        self.bias.as_ref().map(|b| tape.param(b))
    }

    /// `[M,I]` to `[M,O]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var, activation: Activation) -> Result<Var> {
        let (w, b) = (param_as(tape, &self.weight, x.value().dtype())?, self.bias(tape));
        linear(tape, x, &w, b.as_ref(), activation)
    }

    /// `[..,I]` to `[..,O]`.
    pub fn forward_last(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let (w, b) = (param_as(tape, &self.weight, x.value().dtype())?, self.bias(tape));
        linear_last(tape, x, &w, b.as_ref(), Activation::None)
    }
}

/// A 2×2 transposed convolution of stride 2, which doubles height and width.
pub struct Deconv2x2 {
    weight: Param,
    bias: Param,
}

impl Deconv2x2 {
    /// `bias` starts at 0.
    pub fn new(b: &mut Builder<'_>, i: usize, o: usize) -> Result<Self> {
        // He et al. 2015 as torch counts a transposed weight: each input reaches 4 outputs of each channel.
        let init = Init::Normal((2.0 / (4 * i) as f32).sqrt());
        let weight = b.param("weight", Role::Weight, &[i, 2, 2, o], init)?;
        Ok(Deconv2x2 { weight, bias: b.param("bias", Role::Bias, &[o], Init::Constant(0.0))? })
    }

    /// `[R,H,W,I]` to `[R,2H,2W,O]`. Only the first `counts[b]` maps of each group are valid, and the others may be
    /// skipped (see [`deconv2x2`]).
    pub fn forward_live(&self, tape: &mut Tape, x: &Var, activation: Activation, counts: &Tensor) -> Result<Var> {
        let (w, b) = (param_as(tape, &self.weight, x.value().dtype())?, tape.param(&self.bias));
        deconv2x2(tape, x, &w, Some(&b), activation, Some(counts))
    }
}

/// A linear layer with one output per class; each row computes only the output of its own label.
pub struct SelectLinear {
    weight: Param,
    bias: Param,
}

impl SelectLinear {
    /// `bias` starts at 0.
    pub fn new(b: &mut Builder<'_>, i: usize, o: usize, init: Init) -> Result<Self> {
        let weight = b.param("weight", Role::Weight, &[o, i], init)?;
        Ok(SelectLinear { weight, bias: b.param("bias", Role::Bias, &[o], Init::Constant(0.0))? })
    }

    /// `[R,..,I]` and one label for each of the R rows, to `[R,..]`: see [`select_linear`].
    pub fn forward(&self, tape: &mut Tape, x: &Var, label: &Tensor) -> Result<Var> {
        let (w, b) = (tape.param(&self.weight), tape.param(&self.bias));
        select_linear(tape, x, &w, &b, label)
    }
}

/// The statistics that batch norm normalises with, and which of its parameters change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormMode {
    /// Normalises with the statistics of each micro-batch; scale and bias are trained, running statistics are updated.
    Train,
    /// Normalises with the running statistics and keeps them as they are; scale and bias are trained. mmdetection's
    /// `norm_eval`, with its usual `requires_grad`.
    Eval,
    /// Normalises with the running statistics; nothing is trained or updated.
    Frozen,
}

/// Batch norm, fused with the residual sum and the ReLU that follow it.
pub struct BatchNorm {
    gamma: Param,
    beta: Param,
    mean: Param,
    var: Param,
    eps: f32,
    momentum: f32,
}

impl BatchNorm {
    /// A layer over `c` channels; `gamma` is the initial scale.
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

    /// `relu(bn(x) + residual)`; the residual and the ReLU are optional.
    pub fn forward(&self, tape: &mut Tape, x: &Var, residual: Option<&Var>, relu: bool, mode: NormMode) -> Result<Var> {
        let (gamma, beta) = (tape.param(&self.gamma), tape.param(&self.beta));
        let mode = match mode {
            NormMode::Train => BnMode::Train { momentum: self.momentum },
            NormMode::Eval | NormMode::Frozen => BnMode::Frozen, // scale and bias have a gradient where they are trained
        };
        let BatchNorm { mean, var, eps, .. } = self;
        batch_norm_relu(
            tape,
            x,
            BatchNormRelu { gamma: &gamma, beta: &beta, mean, var, mode, eps: *eps, residual, relu },
        )
    }
}

/// Layer norm over the last dimension.
pub struct LayerNorm {
    gamma: Param,
    beta: Param,
    eps: f32,
}

impl LayerNorm {
    /// A layer over `c` channels, with scale 1 and shift 0 at first.
    pub fn new(b: &mut Builder<'_>, c: usize, eps: f32) -> Result<Self> {
        Ok(LayerNorm {
            gamma: b.param("weight", Role::Norm, &[c], Init::Constant(1.0))?,
            beta: b.param("bias", Role::Norm, &[c], Init::Constant(0.0))?,
            eps,
        })
    }

    /// `[..,C]` to `[..,C]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let (gamma, beta) = (tape.param(&self.gamma), tape.param(&self.beta));
        layer_norm(tape, x, &gamma, &beta, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::store::ParamStore;

    #[test]
    fn a_new_layer_norm_only_normalises() {
        let dev = Device::cpu();
        let mut store = ParamStore::new(&dev);
        let norm = LayerNorm::new(&mut store.builder(0).sub("norm1"), 2, 0.0).unwrap();
        let names: Vec<_> = store.all().iter().map(|p| (p.name().to_string(), p.role())).collect();
        assert_eq!(names, [("norm1.weight".into(), Role::Norm), ("norm1.bias".into(), Role::Norm)]);
        let mut tape = Tape::inference(&dev);
        let x = tape.constant(Tensor::from_slice(&dev, &[1, 2, 2], &[1.0f32, 3.0, 5.0, -5.0]).unwrap());
        let y = norm.forward(&mut tape, &x).unwrap();
        assert_eq!((y.shape(), y.value().f32s()), (&[1, 2, 2][..], &[-1.0, 1.0, 1.0, -1.0][..]));
    }
}
