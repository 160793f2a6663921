//! Every parameter of the detector receives a finite gradient that is not zero.

use upres::data::Shape;
use upres::device::Device;
use upres::engine::{Engine, StageSetup};
use upres::models::config::{
    BackboneConfig, BackboneKind, BoxHeadConfig, BoxHeadKind, FpnConfig, ModelConfig, RpnConfig,
};
use upres::models::{HostBatch, Sampling};
use upres::philox::{Purpose, Stream};
use upres::recipe::{NormMode, StageConfig};

use crate::harness::PIXELS;

const SIZE: usize = 64;
const CLASSES: usize = 3;

fn model(kind: BackboneKind, levels: usize, head: BoxHeadKind, class_agnostic: bool) -> ModelConfig {
    let strides = [4, 8, 16, 32, 64][..levels].to_vec();
    ModelConfig {
        backbone: BackboneConfig { kind, width: 0.25, ..Default::default() },
        fpn: FpnConfig { channels: 16, levels, ..Default::default() },
        rpn: RpnConfig {
            channels: 16,
            strides,
            anchor_scales: vec![4.0],
            train_max: 64,
            test_max: 64,
            ..Default::default()
        },
        box_head: BoxHeadConfig {
            kind: head,
            class_agnostic,
            conv_channels: 16,
            fc_channels: 32,
            samples: 32,
            ..Default::default()
        },
        ..Default::default()
    }
}

fn every_parameter_learns(model: &ModelConfig, norm: NormMode) {
    let bucket = vec![Shape { height: SIZE as u32, width: SIZE as u32 }];
    let stage = StageConfig { micro_batch: 2, images_per_step: 2, batch_norm: norm, ..Default::default() };
    let setup = StageSetup::new(&stage, bucket.clone(), bucket, 2);
    let engine = |device: &Device| {
        let mut e = Engine::new(device, model, CLASSES, PIXELS, 7).unwrap();
        e.enter_stage(&setup).unwrap();
        e
    };
    let plan = engine(&Device::plan()).train_pass(None, 0, 1.0, true, Sampling::Random).unwrap();
    let mut e = engine(&Device::cpu());
    let mut r = Stream::new(5, 0, 0, 0, Purpose::Test).rng();
    let images: Vec<u8> = (0..2 * SIZE * SIZE * 3).map(|_| r.below(256) as u8).collect();
    let inputs = e.train_inputs(0);
    inputs
        .load(&HostBatch {
            images: &images,
            sizes: &[[SIZE as f32; 4]; 2],
            scale: &[[1.0; 2]; 2],
            gt_boxes: &[4., 6., 20., 26., 24., 20., 60., 62., 0., 0., 64., 60., 30., 8., 44., 20.],
            gt_labels: &[0, 1, 2, 0],
            gt_count: &[2, 2],
            ..Default::default()
        })
        .unwrap();
    inputs.set_key(1, 0, 0, 0).unwrap();
    e.train_pass(Some(&plan), 0, 1.0, true, Sampling::Random).unwrap();
    assert!(e.losses().unwrap().iter().all(|l| l.is_finite() && *l > 0.0), "{:?}", e.losses().unwrap());
    assert_eq!(e.first_non_finite().unwrap(), None);
    let mut trained = 0;
    for p in e.store.trainable() {
        p.finish_grad().unwrap();
        let grad = p.grad();
        assert!(grad.as_ref().unwrap().f32s().iter().any(|g| *g != 0.0), "{}: no gradient reaches it", p.name());
        trained += 1;
    }
    assert!(trained > 60, "{trained} parameters");
}

#[test]
fn resnet_18_with_four_convolutions() {
    every_parameter_learns(&model(BackboneKind::Resnet18, 5, BoxHeadKind::Shared4Conv1Fc, false), NormMode::Train);
}

#[test]
fn resnet_34_with_two_layers_one_set_of_deltas_and_four_levels() {
    every_parameter_learns(&model(BackboneKind::Resnet34, 4, BoxHeadKind::Shared2Fc, true), NormMode::Train);
}

#[test]
fn resnet_50_with_two_layers_and_frozen_norms() {
    every_parameter_learns(&model(BackboneKind::Resnet50, 5, BoxHeadKind::Shared2Fc, false), NormMode::Frozen);
}

#[test]
fn resnet_101_with_one_set_of_deltas() {
    every_parameter_learns(&model(BackboneKind::Resnet101, 4, BoxHeadKind::Shared4Conv1Fc, true), NormMode::Train);
}
