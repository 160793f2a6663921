//! A small detector, synthetic pictures for it, and the plans of its steps.

use std::rc::Rc;

use upres::data::Shape;
use upres::device::{Device, StepPlan};
use upres::engine::{Engine, StageSetup};
use upres::models::config::{BackboneConfig, BackboneKind, BoxHeadConfig, Detector, FpnConfig, ModelConfig, RpnConfig};
use upres::models::{HostBatch, PixelStats, Sampling};
use upres::philox::{Purpose, Stream};
use upres::recipe::{NormMode, StageConfig};

pub const PIXELS: PixelStats = PixelStats { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
pub const SIZE: usize = 96;
pub const CLASSES: usize = 3;

pub fn small() -> ModelConfig {
    ModelConfig {
        backbone: BackboneConfig { kind: BackboneKind::Resnet18, width: 0.25, ..Default::default() },
        fpn: FpnConfig { channels: 32, levels: 5, ..Default::default() },
        rpn: RpnConfig { channels: 32, anchor_scales: vec![4.0], train_max: 64, test_max: 64, ..Default::default() },
        box_head: BoxHeadConfig { conv_channels: 32, fc_channels: 64, samples: 64, ..Default::default() },
        ..Default::default()
    }
}

/// A detector of any family on any backbone, about as small as [`small`].
pub fn small_of(detector: Detector, kind: BackboneKind) -> ModelConfig {
    let mut m = ModelConfig::paper(detector);
    m.backbone = BackboneConfig { kind, width: 0.25, window: 4, ..Default::default() };
    m.fpn.channels = 32;
    (m.rpn.channels, m.rpn.anchor_scales, m.rpn.train_max, m.rpn.test_max) = (32, vec![4.0], 64, 64);
    (m.box_head.conv_channels, m.box_head.fc_channels, m.box_head.samples) = (16, 32, 64);
    (m.mask_head.channels, m.mask_head.convs, m.mask_head.pool) = (16, 2, 7);
    (m.retina_head.channels, m.retina_head.convs, m.retina_head.octave_scale) = (16, 2, 2.0);
    (m.retina_head.nms_pre, m.retina_head.max_pairs) = (100, 300);
    m
}

/// Run lengths that fit in the mask buffer of one image.
const RUNS: usize = 1024;

pub fn setup_of(model: &ModelConfig, batch: usize, norm: NormMode) -> StageSetup {
    let mask_runs = if model.mask_size().is_some() { RUNS } else { 0 };
    StageSetup { mask_runs, ..setup(batch, norm) }
}

pub fn setup(batch: usize, norm: NormMode) -> StageSetup {
    let bucket = vec![Shape { height: SIZE as u32, width: SIZE as u32 }];
    let stage = StageConfig { micro_batch: batch, images_per_step: batch, batch_norm: norm, ..Default::default() };
    StageSetup { ema: 0.5, ..StageSetup::new(&stage, bucket.clone(), bucket, 8) }
}

pub fn engine(device: &Device, setup: &StageSetup) -> Engine {
    engine_of(&small(), device, setup)
}

pub fn engine_of(model: &ModelConfig, device: &Device, setup: &StageSetup) -> Engine {
    let mut e = Engine::new(device, model, CLASSES, PIXELS, 7).unwrap();
    e.enter_stage(setup).unwrap();
    e
}

/// A batch of pictures: filled squares, in one colour per class, on a noisy background.
pub struct Pictures {
    pub images: Vec<u8>,
    pub sizes: Vec<[f32; 4]>,
    pub scale: Vec<[f32; 2]>,
    pub boxes: Vec<f32>,
    pub labels: Vec<i32>,
    pub count: Vec<i32>,
    pub mask_runs: Vec<i32>,
    pub mask_offsets: Vec<i32>,
}

pub fn pictures(n: usize) -> Pictures {
    let mut p = Pictures {
        images: vec![0; n * SIZE * SIZE * 3],
        sizes: vec![[SIZE as f32; 4]; n],
        scale: vec![[1.0; 2]; n],
        boxes: vec![0.0; n * 8 * 4],
        labels: vec![-1; n * 8],
        count: vec![2; n],
        mask_runs: vec![i32::MAX; n * RUNS],
        mask_offsets: vec![0; n * 9],
    };
    for i in 0..n {
        let mut r = Stream::new(3, 0, i as u64, 0, Purpose::Test).rng();
        let image = &mut p.images[i * SIZE * SIZE * 3..][..SIZE * SIZE * 3];
        image.iter_mut().for_each(|v| *v = (100 + r.below(40)) as u8);
        for j in 0..2 {
            let (side, class) = (16 + r.below(24) as usize, r.below(CLASSES as u32) as usize);
            let (x, y) = (r.below(24) as usize + 48 * j, r.below((SIZE - side) as u32) as usize);
            let x = x.min(SIZE - side);
            for yy in y..y + side {
                for xx in x..x + side {
                    let pixel = &mut image[(yy * SIZE + xx) * 3..][..3];
                    pixel.fill(20);
                    pixel[class] = 230;
                }
            }
            let bbox = [x as f32, y as f32, (x + side) as f32, (y + side) as f32];
            p.boxes[(i * 8 + j) * 4..][..4].copy_from_slice(&bbox);
            p.labels[i * 8 + j] = class as i32;
            let (mut at, offsets) = (p.mask_offsets[i * 9 + j] as usize, &mut p.mask_offsets[i * 9..][..9]);
            for row in y..y + side {
                for end in [x, x + side] {
                    p.mask_runs[i * RUNS + at] = (row * SIZE + end) as i32;
                    at += 1;
                }
            }
            offsets[j + 1..].fill(at as i32);
        }
    }
    p
}

pub fn load(e: &mut Engine, p: &Pictures, step: u64) {
    let batch = HostBatch {
        images: &p.images,
        sizes: &p.sizes,
        scale: &p.scale,
        gt_boxes: &p.boxes,
        gt_labels: &p.labels,
        gt_count: &p.count,
        mask_runs: &p.mask_runs,
        mask_offsets: &p.mask_offsets,
    };
    let inputs = e.train_inputs(0);
    inputs.load(&batch).unwrap();
    inputs.set_key(1, 0, step, 0).unwrap();
}

pub struct Plans {
    pub pass: Rc<StepPlan>,
    pub update: Rc<StepPlan>,
    pub eval: Rc<StepPlan>,
    pub persistent: usize,
}

pub fn plans(s: &StageSetup) -> Plans {
    plans_for(&Device::cpu(), s)
}

/// The plans of all steps on a device.
pub fn plans_for(device: &Device, s: &StageSetup) -> Plans {
    plans_of(&small(), device, s)
}

pub fn plans_of(model: &ModelConfig, device: &Device, s: &StageSetup) -> Plans {
    let device = device.planner();
    let mut e = engine_of(model, &device, s);
    let persistent = device.persistent_bytes();
    Plans {
        pass: e.train_pass(None, 0, 1.0, true, Sampling::Random).unwrap(),
        update: e.update(None, 0.0, 1).unwrap(),
        eval: e.eval_pass(None, 0).unwrap(),
        persistent,
    }
}
