//! A detector with everything that a training or evaluation step needs, on one device: parameters, optimizer state,
//! inputs at fixed addresses. The same code on the plan device computes the memory plan of each step.
//!
//! An engine executes single steps. The training loop, checkpoints and evaluation metrics are in [`crate::train`] and
//! [`crate::eval`]. Main type: [`Engine`]. Read [`Engine::train_pass`] and [`Engine::update`] first, then
//! `optimizer.rs` and `recordings.rs`.

pub mod feed;
pub mod memory;
mod optimizer;
mod recordings;

use std::rc::Rc;

pub(super) use optimizer::is_state;
use optimizer::{OptimizerState, StepFactors};

use crate::data::Shape;
use crate::detection::anchors::Anchors;
use crate::device::{Device, StepPlan};
use crate::engine::recordings::{Recordings, Step};
use crate::error::{Error, Result};
use crate::models::{BackboneMode, BoxFrame, Detections, Inputs, Model, ModelConfig, PixelStats, Sampling};
use crate::nn::{NormMode, ParamStore};
use crate::ops::clip_scale::clip_scale;
use crate::ops::common::bias_correction::bias_correction;
use crate::ops::ema::ema;
use crate::ops::grad_norm::grad_norm;
use crate::ops::loss_scale::{INITIAL_SCALE, LossScaleRule, loss_scale, loss_scale_state};
use crate::ops::scaled_seed::scaled_seed;
use crate::recipe::{OptimizerConfig, Recompute, StageConfig};
use crate::tape::{Param, Tape, watch};
use crate::tensor::elementwise;
use crate::tensor::{DType, Tensor};

/// Name of the loss scale's state in checkpoints.
const LOSS_SCALE: &str = "loss_scale";

/// The shapes and settings that an engine prepares for a stage.
#[derive(Clone, Debug)]
pub struct StageSetup {
    /// Index of the stage; part of the keys of its random numbers.
    pub index: u8,
    /// Image shapes of training passes, one for each bucket.
    pub train: Vec<Shape>,
    /// Image shapes of evaluation passes, one for each bucket.
    pub eval: Vec<Shape>,
    /// Number of images in a training pass.
    pub micro_batch: usize,
    /// Number of images in an evaluation pass.
    pub eval_batch: usize,
    /// Number of slots for the ground-truth boxes of an image.
    pub max_gt: usize,
    /// Number of slots for the mask runs of an image; 0 without masks.
    pub mask_runs: usize,
    /// The part of the backbone that is frozen: see [`BackboneMode::frozen_stages`].
    pub frozen_stages: i32,
    /// Mode of batch norm in the rest of the backbone.
    pub batch_norm: NormMode,
    /// The activations of the backbone that are rematerialised instead of being kept.
    pub recompute: Recompute,
    /// Type in which activations are stored in training.
    pub dtype: DType,
    /// Settings of the optimizer.
    pub optimizer: OptimizerConfig,
    /// Largest gradient norm, beyond which gradients are clipped; 0 for no clipping.
    pub clip_grad_norm: f32,
    /// Decay of the running average of the weights; 0 for no average.
    pub ema: f64,
}

impl StageSetup {
    /// A setup from a recipe's stage and the shapes found in the data. It is that of the first stage, without masks and
    /// with f32 activations.
    pub fn new(stage: &StageConfig, train: Vec<Shape>, eval: Vec<Shape>, max_gt: usize) -> StageSetup {
        StageSetup {
            index: 0,
            train,
            eval,
            micro_batch: stage.micro_batch,
            eval_batch: stage.eval_batch(),
            max_gt,
            mask_runs: 0,
            frozen_stages: stage.frozen_stages,
            batch_norm: stage.batch_norm,
            recompute: stage.recompute,
            dtype: DType::F32,
            optimizer: stage.optimizer.clone(),
            clip_grad_norm: stage.clip_grad_norm,
            ema: stage.ema,
        }
    }

    /// The mode of the backbone in training.
    pub fn mode(&self) -> BackboneMode {
        BackboneMode {
            norm: self.batch_norm,
            frozen_stages: self.frozen_stages,
            recompute: self.recompute == Recompute::Blocks,
            dtype: self.dtype,
        }
    }
}

/// A final box of an evaluation pass.
#[derive(Clone, Debug, PartialEq)]
pub struct RawDetection {
    /// x0 y0 x1 y1 in original pixels.
    pub bbox: [f32; 4],
    /// 0 to 1.
    pub score: f32,
    /// Class index.
    pub class: usize,
    /// Logits of the box's mask, row by row over the box; empty without masks.
    pub mask_logits: Vec<f32>,
}

/// A detector and its training state.
pub struct Engine {
    device: Device,
    /// All parameters of the detector.
    pub store: ParamStore,
    /// The detector.
    pub model: Model,
    model_config: ModelConfig,
    seed: u64,
    stage: Option<Stage>,
    lr: Tensor,
    /// AdamW's bias correction for the step.
    correction: Tensor,
    /// 1 - decay of the running average: subtracted in f64, then rounded to f32.
    ema_share: Tensor,
    norm: Tensor,
    losses: Vec<Tensor>,
}

struct Stage {
    setup: StageSetup,
    optimizer: OptimizerState,
    average: Vec<Tensor>,
    train: Vec<Inputs>,
    eval: Vec<Inputs>,
    outputs: Detections,
    /// State of the loss scale, if activations are f16.
    loss_scale: Option<Tensor>,
    recordings: Recordings,
    /// Whether the weights are currently swapped with their average.
    swapped: bool,
}

impl Engine {
    /// An engine with initial weights drawn from `seed`, which also seeds the optimizer.
    pub fn new(device: &Device, model: &ModelConfig, classes: usize, pixels: PixelStats, seed: u64) -> Result<Engine> {
        let mut store = ParamStore::new(device);
        let net = Model::new(&mut store.builder(seed), model, classes, pixels)?;
        let losses = net.heads.loss_names().iter().map(|_| Tensor::zeros(device, &[1], DType::F32));
        let losses = losses.collect::<Result<_>>()?;
        Ok(Engine {
            device: device.clone(),
            store,
            model: net,
            model_config: model.clone(),
            seed,
            stage: None,
            lr: Tensor::zeros(device, &[1], DType::F32)?,
            correction: Tensor::zeros(device, &[2], DType::F32)?,
            ema_share: Tensor::zeros(device, &[1], DType::F32)?,
            norm: Tensor::zeros(device, &[1], DType::F32)?,
            losses,
        })
    }

    /// The device that the engine uses.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Selects the trained parameters and allocates optimizer state (zeros) and inputs for the stage. Weights keep
    /// their values.
    pub fn enter_stage(&mut self, setup: &StageSetup) -> Result<()> {
        self.enter(setup, true)
    }

    /// Allocates inputs for evaluation passes of `batch` images, and nothing that only training needs. Weights keep
    /// their values.
    pub fn enter_eval(&mut self, buckets: Vec<Shape>, batch: usize) -> Result<()> {
        let stage = StageConfig { micro_batch: batch, ema: 0.0, ..StageConfig::default() };
        self.enter(&StageSetup::new(&stage, Vec::new(), buckets, 1), false)
    }

    fn enter(&mut self, setup: &StageSetup, training: bool) -> Result<()> {
        if training && self.model_config.mask_size().is_some() && setup.mask_runs == 0 && !setup.train.is_empty() {
            return Err(Error::value("engine", "a stage that trains masks has no room for them: set mask_runs"));
        }
        self.stage = None; // frees the previous stage's memory before the new one is allocated
        let backbone = &self.model.backbone;
        self.store.set_trainable(|p| training && backbone.trains(p, setup.mode()))?;
        let shapes: Vec<Vec<usize>> = self.store.trainable().map(Param::shape).collect();
        let optimizer = OptimizerState::new(&self.device, &setup.optimizer, &shapes)?;
        let mut average = Vec::new();
        if setup.ema > 0.0 {
            let shapes: Vec<Vec<usize>> = self.store.all().iter().map(Param::shape).collect();
            average = Tensor::flat(&self.device, &shapes, DType::F32)?;
            for (a, p) in average.iter_mut().zip(self.store.all()) {
                elementwise::copy(a, &p.value())?;
            }
        }
        self.ema_share.write(&[(1.0 - setup.ema) as f32])?;
        let inputs = |buckets: &[Shape], batch: usize, max_gt: usize, mask_runs: usize| -> Result<Vec<Inputs>> {
            buckets
                .iter()
                .map(|b| {
                    let (h, w) = (b.height as usize, b.width as usize);
                    let anchors = Anchors::new(&self.device, &self.model_config.anchors(), h, w)?;
                    Inputs::new(&self.device, batch, h, w, max_gt, mask_runs, anchors)
                })
                .collect()
        };
        let train = inputs(&setup.train, setup.micro_batch, setup.max_gt, setup.mask_runs)?;
        let eval = inputs(&setup.eval, setup.eval_batch, 1, 0)?;
        let (b, d) = (setup.eval_batch, self.model_config.max_detections());
        let mask = self.model_config.mask_size();
        let outputs = Detections {
            boxes: Tensor::zeros(&self.device, &[b, d, 4], DType::F32)?,
            scores: Tensor::zeros(&self.device, &[b, d], DType::F32)?,
            classes: Tensor::zeros(&self.device, &[b, d], DType::I32)?,
            masks: mask.map(|s| Tensor::zeros(&self.device, &[b, d, s, s], DType::F32)).transpose()?,
            frame: if mask.is_some() { BoxFrame::Network } else { BoxFrame::Original },
        };
        let scaled = training && setup.dtype == DType::F16;
        let loss_scale = scaled.then(|| loss_scale_state(&self.device, INITIAL_SCALE)).transpose()?;
        self.stage = Some(Stage {
            setup: setup.clone(),
            optimizer,
            average,
            train,
            eval,
            outputs,
            loss_scale,
            recordings: Recordings::default(),
            swapped: false,
        });
        Ok(())
    }

    fn stage(&self) -> &Stage {
        self.stage.as_ref().expect("engine: a step before enter_stage")
    }

    fn stage_mut(&mut self) -> &mut Stage {
        self.stage.as_mut().expect("engine: a step before enter_stage")
    }

    /// The inputs of a training bucket, to be filled by the caller.
    pub fn train_inputs(&mut self, bucket: usize) -> &mut Inputs {
        &mut self.stage_mut().train[bucket]
    }

    /// The inputs of an evaluation bucket, to be filled by the caller.
    pub fn eval_inputs(&mut self, bucket: usize) -> &mut Inputs {
        &mut self.stage_mut().eval[bucket]
    }

    /// Executes one forward and backward pass over the bucket's inputs. Gradients are multiplied by `weight`; they
    /// overwrite the previous gradients if `first`, else they are added to them.
    pub fn train_pass(
        &mut self,
        plan: Option<&Rc<StepPlan>>,
        bucket: usize,
        weight: f32,
        first: bool,
        sampling: Sampling,
    ) -> Result<Rc<StepPlan>> {
        let device = self.device.clone();
        let stage = self.stage.as_mut().expect("engine: a step before enter_stage");
        let (model, losses) = (&self.model, &mut self.losses);
        if first {
            self.store.trainable().try_for_each(Param::clear_grad)?;
        }
        let mode = stage.setup.mode();
        let random = matches!(sampling, Sampling::Random);
        let step = Step::Train { bucket, weight: weight.to_bits(), random };
        let Stage { setup, train, loss_scale, recordings, .. } = stage;
        let inputs = &train[bucket];
        recordings.run(&device, &self.store, step, plan, || {
            watch::begin();
            let dy = match loss_scale {
                Some(state) => scaled_seed(state, weight)?,
                None => {
                    let mut dy = Tensor::empty(&device, &[1], DType::F32)?;
                    elementwise::fill(&mut dy, weight)?;
                    dy
                }
            };
            let mut tape = Tape::training(&device, dy.clone());
            if setup.recompute == Recompute::Norms {
                tape.rematerialise_outputs();
            }
            let terms = model.losses(&mut tape, inputs, mode, sampling)?;
            for (term, out) in terms.iter().zip(losses) {
                elementwise::copy(out, term.value.value())?;
            }
            tape.backward(terms.into_iter().map(|term| (term.value, dy.clone())).collect())?;
            Ok(())
        })
    }

    /// Names of the losses, in the order of [`Engine::losses`].
    pub fn loss_names(&self) -> &'static [&'static str] {
        self.model.heads.loss_names()
    }

    /// The losses of the last pass, in the order of [`Engine::loss_names`].
    pub fn losses(&self) -> Result<Vec<f32>> {
        self.losses.iter().map(|loss| Ok(loss.read::<f32>()?[0])).collect()
    }

    /// Like [`Engine::losses`], but returns a function that reads the losses later. On a GPU, nothing waits for them
    /// until that function is called.
    pub fn losses_later(&self) -> Result<impl FnOnce() -> Result<Vec<f32>> + use<>> {
        let later = self.losses.iter().map(Tensor::read_later::<f32>).collect::<Result<Vec<_>>>()?;
        Ok(move || later.into_iter().map(|loss| Ok(loss()?[0])).collect())
    }

    /// Executes one optimizer step on the gradients accumulated since the previous one. `step` counts the steps of the
    /// stage from 1.
    pub fn update(&mut self, plan: Option<&Rc<StepPlan>>, lr: f64, step: u64) -> Result<Rc<StepPlan>> {
        self.lr.write(&[lr as f32])?;
        let device = self.device.clone();
        let stage = self.stage.as_mut().expect("engine: a step before enter_stage");
        if stage.loss_scale.is_none() {
            self.correction.write(&bias_correction(stage.setup.optimizer.betas, step))?; // else the device counts the steps
        }
        stage.optimizer.set_key(self.seed, stage.setup.index, step)?;
        let (store, norm, lr, share) = (&self.store, &mut self.norm, &self.lr, &self.ema_share);
        let correction = &mut self.correction;
        let Stage { setup, optimizer, average, recordings, loss_scale: scaling, .. } = stage;
        recordings.run(&device, store, Step::Update, plan, || {
            let params: Vec<&Param> = store.trainable().collect();
            params.iter().try_for_each(|p| p.finish_grad())?;
            let grads: Vec<_> = params.iter().map(|p| p.grad()).collect();
            let grads: Vec<&Tensor> = grads.iter().filter_map(|g| g.as_ref()).collect();
            let total = grad_norm(&device, &grads)?;
            elementwise::copy(norm, &total)?;
            let limit = if setup.clip_grad_norm > 0.0 { setup.clip_grad_norm } else { f32::INFINITY };
            let scale = match scaling {
                Some(state) => {
                    let (betas, rule) = (setup.optimizer.betas, LossScaleRule::default());
                    loss_scale(norm, state, correction, betas, limit, &rule)?
                }
                None => clip_scale(&total, limit)?,
            };
            optimizer.step(&setup.optimizer, &params, &grads, StepFactors { lr, correction, scale: &scale })?;
            if !average.is_empty() {
                let values: Vec<Tensor> = store.all().iter().map(Param::value).collect();
                let mut pairs: Vec<_> = average.iter_mut().zip(&values).collect();
                ema(&mut pairs, share)?;
            }
            Ok(())
        })
    }

    /// Norm of the gradient of the last update, before clipping. It is not finite if f16 overflowed; that step was
    /// skipped.
    pub fn grad_norm(&self) -> Result<f32> {
        Ok(self.norm.read::<f32>()?[0])
    }

    /// Like [`Engine::grad_norm`], but returns a function that reads the norm later.
    pub fn grad_norm_later(&self) -> Result<impl FnOnce() -> Result<f32> + use<>> {
        let later = self.norm.read_later::<f32>()?;
        Ok(move || Ok(later()?[0]))
    }

    /// Swaps the weights with their running average, if the stage keeps one. To be called before and after an
    /// evaluation.
    pub fn swap_average(&mut self) {
        let Some(stage) = self.stage.as_mut() else { return };
        stage.swapped = !stage.swapped;
        for (a, p) in stage.average.iter_mut().zip(self.store.all()) {
            std::mem::swap(a, &mut p.value_mut());
        }
    }

    /// Executes one evaluation pass over the bucket's inputs.
    pub fn eval_pass(&mut self, plan: Option<&Rc<StepPlan>>, bucket: usize) -> Result<Rc<StepPlan>> {
        let device = self.device.clone();
        let stage = self.stage.as_mut().expect("engine: a step before enter_stage");
        let Stage { eval, outputs: out, recordings, swapped, .. } = stage;
        let (model, inputs) = (&self.model, &eval[bucket]);
        recordings.run(&device, &self.store, Step::Eval { bucket, swapped: *swapped }, plan, || {
            let mut tape = Tape::inference(&device);
            let d = model.detect(&mut tape, inputs)?;
            elementwise::copy(&mut out.boxes, &d.boxes)?;
            elementwise::copy(&mut out.scores, &d.scores)?;
            if let (Some(out), Some(masks)) = (&mut out.masks, &d.masks) {
                elementwise::copy(out, masks)?;
            }
            elementwise::copy_i32(&mut out.classes, &d.classes)
        })
    }

    /// Detections of each image of the last evaluation pass, which must have been over this bucket's inputs.
    pub fn detections(&self, bucket: usize) -> Result<Vec<Vec<RawDetection>>> {
        let stage = self.stage();
        let out = &stage.outputs;
        let scale = match out.frame {
            BoxFrame::Original => None,
            BoxFrame::Network => Some(stage.eval[bucket].scale.read::<f32>()?),
        };
        let masks = out.masks.as_ref().map(Tensor::read::<f32>).transpose()?;
        let pixels = self.model_config.mask_size().map_or(0, |s| s * s);
        let d = out.scores.dim(1);
        let (boxes, scores, classes) =
            (out.boxes.read::<f32>()?, out.scores.read::<f32>()?, out.classes.read::<i32>()?);
        let found = |i: usize| {
            (i * d..(i + 1) * d)
                .filter(|&j| classes[j] >= 0)
                .map(|j| RawDetection {
                    bbox: std::array::from_fn(|k| boxes[4 * j + k] / scale.as_ref().map_or(1.0, |s| s[2 * i + k % 2])),
                    score: scores[j],
                    class: classes[j] as usize,
                    mask_logits: masks.as_ref().map_or(Vec::new(), |m| m[j * pixels..][..pixels].to_vec()),
                })
                .collect()
        };
        Ok((0..out.scores.dim(0)).map(found).collect())
    }

    /// Least probability of a pixel that belongs to a mask.
    pub fn mask_threshold(&self) -> f32 {
        self.model_config.mask_head.threshold
    }

    /// All tensors of a checkpoint of this stage with their names: parameters, optimizer state (`momentum.<name>`;
    /// AdamW: `exp_avg.<name>`, `exp_avg_sq.<name>`), `ema.<name>`, and `loss_scale` if activations are f16.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut v: Vec<_> = self.store.all().iter().map(|p| (p.name().to_string(), p.value())).collect();
        if let Some(stage) = &self.stage {
            for (kind, tensors) in stage.optimizer.lists() {
                v.extend(self.store.trainable().zip(tensors).map(|(p, t)| (format!("{kind}.{}", p.name()), t.clone())));
            }
            v.extend(
                self.store.all().iter().zip(&stage.average).map(|(p, t)| (format!("ema.{}", p.name()), t.clone())),
            );
            v.extend(stage.loss_scale.iter().map(|t| (LOSS_SCALE.to_string(), t.clone())));
        }
        v
    }

    /// Overwrites optimizer state and averages with those of a checkpoint. `find` returns the values of a tensor by its
    /// name and number of elements, in f32 whatever its type in the checkpoint, and its error names a missing tensor.
    /// Only the loss scale may be missing, if the checkpoint was trained in another precision: then it starts with its
    /// initial value, after the `steps` that the stage has taken.
    pub fn load_optimizer(
        &mut self,
        has: impl Fn(&str) -> bool,
        steps: u64,
        find: impl Fn(&str, usize) -> Result<Vec<f32>>,
    ) -> Result<()> {
        let Some(stage) = self.stage.as_mut() else { return Ok(()) };
        let names: Vec<&str> = self.store.trainable().map(Param::name).collect();
        stage.optimizer.load(|kind, i, n| find(&format!("{kind}.{}", names[i]), n))?;
        for (p, t) in self.store.all().iter().zip(stage.average.iter_mut()) {
            t.write(&find(&format!("ema.{}", p.name()), t.numel())?)?;
        }
        if let Some(t) = &mut stage.loss_scale {
            let anew = || Ok(vec![INITIAL_SCALE, 0.0, steps as f32]);
            t.write(&if has(LOSS_SCALE) { find(LOSS_SCALE, t.numel()) } else { anew() }?)?;
        }
        Ok(())
    }

    /// Name of the first parameter or gradient that is not finite and must not be saved. With f16 activations gradients
    /// are not checked: they may overflow, and then the optimizer has skipped the step.
    pub fn first_spoilt(&self) -> Result<Option<String>> {
        let may_overflow = self.stage.as_ref().is_some_and(|stage| stage.loss_scale.is_some());
        self.find_non_finite(!may_overflow)
    }

    /// Name of the first parameter or gradient that is not finite.
    pub fn first_non_finite(&self) -> Result<Option<String>> {
        self.find_non_finite(true)
    }

    fn find_non_finite(&self, gradients: bool) -> Result<Option<String>> {
        let bad = |t: &Tensor| Ok(t.read::<f32>()?.iter().any(|v| !v.is_finite()));
        for p in self.store.all() {
            if bad(&p.value())? {
                return Ok(Some(format!("parameter {}", p.name())));
            }
            if gradients && p.grad().as_ref().map(bad).transpose()?.unwrap_or(false) {
                return Ok(Some(format!("gradient of {}", p.name())));
            }
        }
        Ok(None)
    }
}
