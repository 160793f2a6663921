//! Batch norm, the residual sum and the ReLU after it, in one op.

mod cpu;
mod cuda;

use super::{Gradient, OpInfo};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::on_device;
use crate::ops::common::wide;
use crate::tape::{Backward, Param, Rematerialised, Saved, Sink, Tape, Var};
use crate::tensor::{DType, Tensor};

/// Registry entry.
pub const INFO: OpInfo = OpInfo { name: "batch_norm_relu", gradient: Gradient::Yes };

/// Where mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BnMode {
    /// From the batch. The running statistics move towards the batch's by `momentum` (the variance is unbiased there).
    Train {
        /// Weight of the new batch, 0.1 in torch.
        momentum: f32,
    },
    /// From the running statistics, which do not change: for evaluation and for fine-tuning (scale and bias may be
    /// trained).
    Frozen,
}

/// The arguments of [`batch_norm_relu`] other than x.
#[derive(Clone, Copy)]
pub struct BatchNormRelu<'a> {
    /// Scale `[C]`.
    pub gamma: &'a Var,
    /// Shift `[C]`.
    pub beta: &'a Var,
    /// Running mean `[C]`.
    pub mean: &'a Param,
    /// Running variance `[C]`.
    pub var: &'a Param,
    /// Where mean and variance come from.
    pub mode: BnMode,
    /// Added to the variance.
    pub eps: f32,
    /// Added before the ReLU; has the shape of x.
    pub residual: Option<&'a Var>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// `y = relu((x - mean) * rstd * gamma + beta + residual)` over N, H, W; residual and ReLU are optional.
///
/// Shapes: x, residual, y `[N,H,W,C]`, floats of one type; gamma, beta, running mean and variance `[C]` f32.
/// Saves: x, y (for the ReLU's mask; the next op keeps it anyway), mean and rstd `[C]`. If frozen and without a
/// gradient for gamma and beta: only y and the `[C]` vectors. If outputs are rematerialised
/// ([`Tape::rematerialise_outputs`]) and there is no residual: only x and the `[C]` vectors; y is rematerialised once,
/// for this rule and for those of later ops.
/// Gradient: x, gamma, beta, residual; written over the incoming gradient and over x if nothing else holds them.
/// Cost: training reads x twice and writes y, backward reads dy, x, y twice and writes dx; if frozen, one pass each;
/// memory-bound.
/// Errors: `Shape`, `Dtype`; `Value` for training on one value a channel, whose variance is 0.
/// Reference: Ioffe and Szegedy 2015, algorithm 1; running statistics as in torch.nn.BatchNorm2d.
pub fn batch_norm_relu(tape: &mut Tape, x: &Var, op: BatchNormRelu<'_>) -> Result<Var> {
    let device = x.device();
    let _op = device.enter("batch_norm_relu");
    let [n, h, w, c] = x.value().dims("batch_norm_relu: x")?;
    op.check(x.value(), c)?;
    let BatchNormRelu { gamma, beta, residual, mode, relu, .. } = op;
    if wide::needed(x) {
        return in_16_bits(tape, x, op);
    }
    let split = cpu::Split::new(n * h * w, c);
    let stats = op.statistics(x.value(), &split, tape.is_rematerialising())?;
    let y = normalize(x.value(), residual.map(Var::value), relu, &stats, gamma.value(), beta.value(), &split)?;
    let inputs = [x, gamma, beta, residual.unwrap_or(x)];
    let inputs = if residual.is_some() { &inputs[..] } else { &inputs[..3] };
    if !tape.will_record(inputs) {
        return Ok(tape.constant(y));
    }
    let train = matches!(mode, BnMode::Train { .. });
    let affine = gamma.needs_grad() || beta.needs_grad();
    let saved_x = (train || affine).then(|| x.value().clone());
    let rule = |y| BatchNormReluBwd {
        x: saved_x.clone(),
        y,
        gamma: gamma.value().clone(),
        stats: stats.clone(),
        train,
        split,
    };
    if let (true, true, None, Some(x)) = (tape.rematerialises_outputs(), relu, residual, &saved_x) {
        let (x, stats, gamma, beta) = (x.clone(), stats.clone(), gamma.value().clone(), beta.value().clone());
        let recipe = Rematerialised::new(&y, move || {
            let _op = x.device().enter("batch_norm_relu");
            normalize(&x, None, true, &stats, &gamma, &beta, &split)
        });
        let rule = rule(Some(Saved::Rematerialised(recipe.clone())));
        return Ok(tape.record_rematerialised(inputs, y, recipe, rule));
    }
    let rule = rule(relu.then(|| Saved::Kept(y.clone())));
    Ok(tape.record_all(inputs, y, rule))
}

/// The op on the CPU for 16-bit activations: computed in f32 and rounded once.
fn in_16_bits(tape: &mut Tape, x: &Var, op: BatchNormRelu<'_>) -> Result<Var> {
    let BatchNormRelu { gamma, beta, mean, var, mode, eps, residual, relu } = op;
    let (mean, var) = (mean.clone(), var.clone());
    let inputs: Vec<&Var> = [x, gamma, beta].into_iter().chain(residual).collect();
    wide::run(tape, &inputs, move |tape, v| {
        let (mean, var, residual) = (&mean, &var, v.get(3));
        batch_norm_relu(tape, &v[0], BatchNormRelu { gamma: &v[1], beta: &v[2], mean, var, mode, eps, residual, relu })
    })
}

impl BatchNormRelu<'_> {
    fn check(&self, x: &Tensor, c: usize) -> Result<()> {
        x.expect_float("batch_norm_relu: x")?;
        for (what, t) in [
            ("batch_norm_relu: gamma", self.gamma.value()),
            ("batch_norm_relu: beta", self.beta.value()),
            ("batch_norm_relu: running mean", &self.mean.value()),
            ("batch_norm_relu: running variance", &self.var.value()),
        ] {
            t.expect_shape(what, &[c])?;
            t.expect_dtype(what, DType::F32)?;
        }
        if let Some(r) = self.residual {
            r.value().expect_shape("batch_norm_relu: residual", x.shape())?;
            r.value().expect_dtype("batch_norm_relu: residual", x.dtype())?;
        }
        Ok(())
    }

    /// Returns the mean and the reciprocal standard deviation of each channel, `[2,C]`. In training, also updates the
    /// running statistics.
    fn statistics(&self, x: &Tensor, split: &cpu::Split, is_rematerialising: bool) -> Result<Tensor> {
        let (device, eps) = (x.device(), self.eps);
        let mut stats = Tensor::empty(device, &[2, split.c], DType::F32)?;
        match self.mode {
            BnMode::Train { .. } if split.m == 1 => {
                return Err(Error::value(
                    "batch_norm_relu",
                    format!(
                        "one value a channel in {:?} has no variance: use more images or freeze batch norm",
                        x.shape()
                    ),
                ));
            }
            BnMode::Train { momentum } => {
                let momentum = if is_rematerialising { 0.0 } else { momentum }; // the first run has moved them
                let mut partial = Tensor::empty(device, &partial_shape(device, 3, split, x.dtype()), DType::F32)?;
                let (mut mean, mut var) = (self.mean.value_mut(), self.var.value_mut());
                on_device!(
                    device,
                    cpu => cpu::batch_stats(
                        stats.f32s_mut(), mean.f32s_mut(), var.f32s_mut(), partial.f32s_mut(), x.f32s(), momentum, eps, split),
                    cuda => cuda::batch_stats(
                        &mut stats, (&mut mean, &mut var), &mut partial, x, momentum, eps, split.size()),
                );
            }
            BnMode::Frozen => {
                let (mean, var) = (self.mean.value(), self.var.value());
                on_device!(
                    device,
                    cpu => cpu::running_stats(stats.f32s_mut(), mean.f32s(), var.f32s(), eps),
                    cuda => cuda::running_stats(&mut stats, &mean, &var, eps),
                );
            }
        }
        Ok(stats)
    }
}

/// `relu((x - mean) * rstd * gamma + beta + residual)`.
fn normalize(
    x: &Tensor,
    residual: Option<&Tensor>,
    relu: bool,
    stats: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    split: &cpu::Split,
) -> Result<Tensor> {
    let device = x.device();
    let mut y = Tensor::empty(device, x.shape(), x.dtype())?;
    let mut coef = Tensor::empty(device, &[3, coef_lanes(device, split)], DType::F32)?;
    on_device!(
        device,
        cpu => {
            cpu::forward_coef(coef.f32s_mut(), stats.f32s(), gamma.f32s(), beta.f32s(), split);
            cpu::forward(y.f32s_mut(), x.f32s(), residual.map(Tensor::f32s), relu, coef.f32s(), split);
        },
        cuda => cuda::forward(&mut y, x, residual, relu, stats, gamma, beta, split.size()),
    );
    Ok(y)
}

/// Shape of the partial sums: `k` numbers per chunk and lane on the CPU; GPU kernels have their own chunks.
fn partial_shape(device: &Device, k: usize, split: &cpu::Split, dtype: DType) -> [usize; 3] {
    if device.runs_kernels() { cuda::partial_shape(split.size(), dtype) } else { [split.chunks(), k, split.wide] }
}

/// Lanes of the CPU's coefficients. GPU kernels compute theirs in registers.
fn coef_lanes(device: &Device, split: &cpu::Split) -> usize {
    if device.runs_kernels() { 0 } else { split.wide }
}

struct BatchNormReluBwd {
    x: Option<Tensor>,
    y: Option<Saved>,
    gamma: Tensor,
    stats: Tensor,
    train: bool,
    split: cpu::Split,
}

impl Backward for BatchNormReluBwd {
    fn op(&self) -> &'static str {
        "batch_norm_relu"
    }

    fn saved_bytes(&self) -> usize {
        let tensor = |t: &Option<Tensor>| t.as_ref().map_or(0, Tensor::bytes);
        tensor(&self.x) + self.y.as_ref().map_or(0, Saved::bytes) + self.stats.bytes()
    }

    fn backward(mut self: Box<Self>, dy: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let y = self.y.take().map(Saved::get).transpose()?;
        let mut coef = Tensor::empty(dy.device(), &[4, coef_lanes(dy.device(), &self.split)], DType::F32)?;
        let sums = self.reduce(&dy, y.as_ref(), &mut coef, sink)?;
        let BatchNormReluBwd { gamma, stats, split, .. } = &*self;
        on_device!(
            dy.device(),
            cpu => cpu::backward_coef(
                coef.f32s_mut(), stats.f32s(), gamma.f32s(), sums.as_ref().map(Tensor::f32s), split),
            cuda => Ok::<(), Error>(()), // each thread makes its own
        );
        self.backward_inputs(dy, y.as_ref(), &coef, sums.as_ref(), sink)
    }
}

impl BatchNormReluBwd {
    /// Writes the gradients of gamma and beta. Returns their sums `[2,C]`, which the gradient of x needs in training.
    fn reduce(
        &self,
        dy: &Tensor,
        y: Option<&Tensor>,
        coef: &mut Tensor,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Tensor>> {
        let BatchNormReluBwd { x, stats, train, split, .. } = self;
        let wanted = sink.needs(1) || sink.needs(2) || (*train && sink.needs(0));
        let Some(x) = x.as_ref().filter(|_| wanted) else { return Ok(None) };
        let device = dy.device();
        let mut both = Tensor::empty(device, &[2, split.c], DType::F32)?;
        let mut partial = Tensor::empty(device, &partial_shape(device, 2, split, dy.dtype()), DType::F32)?;
        on_device!(
            device,
            cpu => {
                let y = y.map(Tensor::f32s);
                cpu::reduce(partial.f32s_mut(), dy.f32s(), x.f32s(), y, stats.f32s(), coef.f32s_mut(), split);
                cpu::fold(both.f32s_mut(), partial.f32s(), split);
            },
            cuda => cuda::reduce(&mut both, &mut partial, dy, x, y, stats, split.size()),
        );
        drop(partial);
        for i in 0..2 {
            sink.write(1 + i, device, &[split.c], DType::F32, |target, add| {
                on_device!(
                    device,
                    cpu => cpu::put(target.f32s_mut(), &both.f32s()[i * split.c..][..split.c], add),
                    cuda => cuda::put(target, &both, i, add),
                );
                Ok(())
            })?;
        }
        Ok(train.then_some(both))
    }

    /// Writes the gradients of x and of the residual, each over dy or x if nothing else holds them.
    fn backward_inputs(
        self,
        dy: Tensor,
        y: Option<&Tensor>,
        coef: &Tensor,
        sums: Option<&Tensor>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let BatchNormReluBwd { x, gamma, stats, train, split, .. } = self;
        let (device, shape, dtype) = (dy.device().clone(), dy.shape().to_vec(), dy.dtype());
        let y_values = || y.map(Tensor::f32s);
        let size = split.size();
        let sums = || sums.expect("batch_norm_relu: training reduces before it needs the sums");
        match (sink.needs(0), sink.needs(3), x) {
            (false, false, _) => Ok(()),
            (true, false, Some(x)) if train => {
                let (mut dx, dy) = dy.into_output()?;
                on_device!(
                    &device,
                    cpu => cpu::backward_train(
                        dx.f32s_mut(), dy.as_ref().map(Tensor::f32s), x.f32s(), y_values(), coef.f32s(), &split),
                    cuda => cuda::backward_train((&mut dx, dy.as_ref()), &x, y, &stats, &gamma, sums(), size),
                );
                sink.add(0, dx)
            }
            (true, true, Some(x)) if train => {
                let (mut dresidual, dy) = dy.into_output()?;
                let (mut dx, x) = x.into_output()?;
                on_device!(
                    &device,
                    cpu => cpu::backward_train_residual(
                        dresidual.f32s_mut(), dy.as_ref().map(Tensor::f32s), dx.f32s_mut(), x.as_ref().map(Tensor::f32s),
                        y_values(), coef.f32s(), &split),
                    cuda => cuda::backward_train_residual(
                        (&mut dresidual, dy.as_ref()), (&mut dx, x.as_ref()), y, &stats, &gamma, sums(), size),
                );
                sink.add(0, dx)?;
                sink.add(3, dresidual)
            }
            (true, false, _) => {
                let (mut dx, dy) = dy.into_output()?;
                on_device!(
                    &device,
                    cpu => cpu::backward_frozen(
                        dx.f32s_mut(), dy.as_ref().map(Tensor::f32s), y_values(), coef.f32s(), &split),
                    cuda => cuda::backward_frozen((&mut dx, dy.as_ref()), y, &stats, &gamma, size),
                );
                sink.add(0, dx)
            }
            (needs_x, true, _) => {
                let (mut dresidual, dy) = dy.into_output()?;
                let mut dx = needs_x.then(|| Tensor::empty(&device, &shape, dtype)).transpose()?;
                on_device!(
                    &device,
                    cpu => cpu::backward_frozen_residual(
                        dresidual.f32s_mut(), dy.as_ref().map(Tensor::f32s), dx.as_mut().map(Tensor::f32s_mut),
                        y_values(), coef.f32s(), &split),
                    cuda => cuda::backward_frozen_residual(
                        (&mut dresidual, dy.as_ref()), dx.as_mut(), y, &stats, &gamma, size),
                );
                if let Some(dx) = dx {
                    sink.add(0, dx)?;
                }
                sink.add(3, dresidual)
            }
        }
    }
}
