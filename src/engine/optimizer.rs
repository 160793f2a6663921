//! The optimizer of a stage: its state, and its step on all trained parameters. Main type: [`OptimizerState`].

use crate::device::{ALIGN_BYTES, Device};
use crate::error::Result;
use crate::ops::adamw::{AdamWParam, AdamWRule, adamw};
use crate::ops::common::stochastic_rounding::round_to_nearest;
use crate::ops::sgd::{SgdParam, sgd};
use crate::philox;
use crate::recipe::{OptimizerConfig, OptimizerKind};
use crate::tape::{Param, Role};
use crate::tensor::DType;
use crate::tensor::Tensor;

/// Names of the state tensors of SGD.
const SGD: &[&str] = &["momentum"];
/// Names of the state tensors of AdamW.
const ADAMW: &[&str] = &["exp_avg", "exp_avg_sq"];

/// Whether a tensor of a checkpoint is optimizer state, by its name. Optimizer state may be bf16.
pub(crate) fn is_state(name: &str) -> bool {
    SGD.iter().chain(ADAMW).any(|kind| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('.')))
}

/// The numbers of one step, on the device.
pub(super) struct StepFactors<'a> {
    /// Learning rate `[1]`.
    pub(super) lr: &'a Tensor,
    /// AdamW's bias correction of the two means, `[2]`.
    pub(super) correction: &'a Tensor,
    /// Factor of the gradients, `[1]`: the clipping factor divided by the loss scale.
    pub(super) scale: &'a Tensor,
}

/// The state that an optimizer keeps between steps.
pub(super) struct OptimizerState {
    /// The lists of state tensors: each has a name, and one tensor for each trained parameter.
    lists: Vec<(&'static str, Vec<Tensor>)>,
    /// Key of the step's random numbers, if state is rounded stochastically (bf16).
    key: Option<Tensor>,
}

impl OptimizerState {
    /// State for parameters of these shapes, filled with zeros.
    pub(super) fn new(device: &Device, cfg: &OptimizerConfig, shapes: &[Vec<usize>]) -> Result<OptimizerState> {
        let dtype = cfg.state.dtype();
        let names = match cfg.kind {
            OptimizerKind::Sgd => SGD,
            OptimizerKind::Adamw => ADAMW,
        };
        let flat = |name: &&'static str| Ok((*name, Tensor::flat(device, shapes, dtype)?));
        let lists = names.iter().map(flat).collect::<Result<_>>()?;
        let key = (dtype == DType::BF16).then(|| Tensor::zeros(device, &[6], DType::I32)).transpose()?;
        Ok(OptimizerState { lists, key })
    }

    /// The lists of state tensors: each has a name, and one tensor for each trained parameter.
    pub(super) fn lists(&self) -> impl Iterator<Item = (&'static str, &[Tensor])> {
        self.lists.iter().map(|(name, tensors)| (*name, tensors.as_slice()))
    }

    /// Overwrites the tensors of all lists, in order. `find` returns the values by the list's name, the tensor's index
    /// and its number of elements. bf16 tensors are written with rounding to nearest, so that values saved from bf16
    /// are restored exactly.
    pub(super) fn load(&mut self, find: impl Fn(&str, usize, usize) -> Result<Vec<f32>>) -> Result<()> {
        for (name, tensors) in &mut self.lists {
            for (i, t) in tensors.iter_mut().enumerate() {
                let values = find(name, i, t.numel())?;
                match t.dtype() {
                    DType::BF16 => t.write(&values.into_iter().map(round_to_nearest).collect::<Vec<_>>())?,
                    _ => t.write(&values)?,
                }
            }
        }
        Ok(())
    }

    /// Sets the key of the next step's random numbers.
    pub(super) fn set_key(&mut self, seed: u64, stage: u8, step: u64) -> Result<()> {
        self.key.as_mut().map_or(Ok(()), |key| key.write(&philox::key(seed, stage, step, 0)))
    }

    /// Bytes of the state, and of the key.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let tensors = self.lists.iter().flat_map(|(_, tensors)| tensors);
        // As `Tensor::flat` lays tensors out.
        let state = tensors.map(|t| t.bytes().next_multiple_of(ALIGN_BYTES)).sum();
        (state, self.key.as_ref().map_or(0, Tensor::bytes))
    }

    /// Updates all trained parameters and their state by one step.
    pub(super) fn step(
        &mut self,
        cfg: &OptimizerConfig,
        params: &[&Param],
        grads: &[&Tensor],
        factors: StepFactors<'_>,
    ) -> Result<()> {
        let StepFactors { lr, correction, scale } = factors;
        let mut values: Vec<_> = params.iter().map(|p| p.value_mut()).collect();
        let each = values.iter_mut().zip(grads).zip(params.iter().map(|p| decay_of(cfg, p.role())));
        let key = self.key.as_ref();
        match (cfg.kind, &mut self.lists[..]) {
            (OptimizerKind::Sgd, [(_, momentum)]) => {
                let rows = each.zip(momentum);
                let mut rows: Vec<SgdParam<'_>> = rows
                    .map(|(((value, grad), weight_decay), momentum)| SgdParam { value, grad, momentum, weight_decay })
                    .collect();
                sgd(&mut rows, lr, scale, cfg.momentum, cfg.nesterov, key)
            }
            (OptimizerKind::Adamw, [(_, means), (_, squares)]) => {
                let rows = each.zip(means.iter_mut().zip(squares));
                let mut rows: Vec<AdamWParam<'_>> = rows
                    .map(|(((value, grad), weight_decay), (mean, square))| AdamWParam {
                        value,
                        grad,
                        mean,
                        square,
                        weight_decay,
                    })
                    .collect();
                adamw(&mut rows, lr, scale, correction, AdamWRule { betas: cfg.betas, eps: cfg.eps }, key)
            }
            _ => unreachable!("engine: enter_stage makes the state of its optimizer"),
        }
    }
}

fn decay_of(cfg: &OptimizerConfig, role: Role) -> f32 {
    let decays = match role {
        Role::Weight => true,
        Role::Bias => cfg.bias_decay,
        Role::Norm => cfg.norm_decay,
        Role::Position | Role::Statistic => false,
    };
    if decays { cfg.weight_decay } else { 0.0 }
}
