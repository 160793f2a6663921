//! Which parameters the recipe's stages train and decay: mmdetection's rules, parameter by parameter.

use std::collections::BTreeSet;

use upres::device::Device;
use upres::engine::Engine;

use crate::harness::*;
use crate::support::fixtures::*;

/// Names of the parameters that one SGD step without gradient shrinks, and of those it leaves unchanged.
fn decayed(stage_name: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    const LR: f64 = 0.5;
    let mut recipe = recipe();
    recipe.model.backbone.width = 0.125; // the names are the same
    (recipe.model.box_head.conv_channels, recipe.model.box_head.fc_channels) = (8, 8);
    let setup = stage(&recipe, stage_name);
    let engine = |device: &Device| {
        let mut e = Engine::new(device, &recipe.model, CLASSES, PIXELS, 0).unwrap();
        e.enter_stage(&setup).unwrap();
        e
    };
    let plan = engine(&Device::plan()).update(None, 0.0, 1).unwrap();
    let mut e = engine(&Device::cpu());
    for p in e.store.all() {
        p.load(&vec![1.0; p.numel()]).unwrap();
    }
    e.store.trainable().for_each(|p| p.clear_grad().unwrap()); // no gradient: zero
    e.update(Some(&plan), LR, 1).unwrap();
    let decay = 1.0 - LR as f32 * setup.optimizer.weight_decay;
    let (mut shrunk, mut same) = (BTreeSet::new(), BTreeSet::new());
    for p in e.store.all().iter().filter(|p| is_weight(p)) {
        let value = p.value();
        let value = value.f32s();
        assert!(value.iter().all(|v| *v == value[0]), "{}", p.name());
        match value[0] {
            1.0 => same.insert(p.name().to_string()),
            v => {
                assert!((v - decay).abs() < 1e-7, "{}: {v}, want {decay}", p.name());
                shrunk.insert(p.name().to_string())
            }
        };
    }
    (shrunk, same)
}

/// All of mmdetection's parameters, and those that it freezes in fine-tuning.
fn parameters() -> (BTreeSet<String>, BTreeSet<String>) {
    let summary = Fixture::open("detectors/faster").grad_summary("finetune.grad_summary");
    let frozen = summary.iter().filter(|(_, s)| s.is_none()).map(|(name, _)| name.clone()).collect();
    (summary.into_keys().collect(), frozen)
}

#[test]
fn pretraining_decays_all_but_batch_norm() {
    let (all, _) = parameters();
    let (shrunk, same) = decayed("pretrain");
    let norms: BTreeSet<String> = all.iter().filter(|n| is_norm(n)).cloned().collect();
    assert_eq!(norms.len(), 106);
    assert_eq!(same, norms);
    assert_eq!(shrunk, &all - &norms);
    assert!(shrunk.contains("neck.lateral_convs.0.conv.bias"), "biases decay");
}

#[test]
fn fine_tuning_decays_all_that_is_trained() {
    let (all, frozen) = parameters();
    assert_eq!(frozen.len(), 117);
    assert!(frozen.contains("backbone.conv1.weight") && frozen.contains("backbone.layer1.2.conv3.weight"));
    let (shrunk, same) = decayed("finetune");
    assert_eq!(same, frozen);
    assert_eq!(shrunk, &all - &frozen);
}
