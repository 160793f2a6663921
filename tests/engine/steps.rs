//! The engine as a whole: planned steps, memory, learning.

use crate::support::small::*;
use upres::device::Device;
use upres::engine::{Engine, StageSetup};
use upres::models::{HostBatch, Sampling};
use upres::recipe::{NormMode, Recompute};
use upres::tape::Role;
use upres::tensor::Tensor;

#[test]
fn memory_in_use_is_the_plan_to_the_byte() {
    for norm in [NormMode::Train, NormMode::Eval, NormMode::Frozen] {
        let s = setup(2, norm);
        let plans = plans(&s);
        let device = Device::cpu();
        let mut e = engine(&device, &s);
        assert_eq!(device.persistent_bytes(), plans.persistent);
        load(&mut e, &pictures(2), 0);
        for plan in [&plans.eval, &plans.pass] {
            let (peak, bound) = (plan.peak_bytes(), plan.lower_bound_bytes());
            assert!(peak as f64 <= 1.05 * bound as f64, "packed within 5 %: {peak} {bound}");
        }
        e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
        e.update(Some(&plans.update), 0.01, 1).unwrap();
        e.eval_pass(Some(&plans.eval), 0).unwrap();
        let peak = plans.pass.peak_bytes().max(plans.update.peak_bytes()).max(plans.eval.peak_bytes());
        let used = device.arena_high_water();
        assert_eq!(used, peak, "{norm:?}");
        assert_eq!(device.persistent_bytes(), plans.persistent, "a step leaves nothing behind");
    }
}

/// Two passes of weight 1/2 over one batch give the gradients of one pass of weight 1: nothing is lost, doubled or left
/// over from the previous step. With running statistics and fixed samples both passes are the same function.
#[test]
fn accumulated_gradients_are_those_of_one_pass() {
    let s = setup(2, NormMode::Eval);
    let (plans, device) = (plans(&s), Device::cpu());
    let mut e = engine(&device, &s);
    let mut gradients = |weights: &[f32], pictures: &Pictures| {
        load(&mut e, pictures, 0);
        for (i, &weight) in weights.iter().enumerate() {
            e.train_pass(Some(&plans.pass), 0, weight, i == 0, Sampling::Strided).unwrap();
        }
        let grads: Vec<(String, Vec<f32>)> = e
            .store
            .trainable()
            .map(|p| (p.name().to_string(), p.grad().as_ref().expect("a gradient").f32s().to_vec()))
            .collect();
        (e.losses().unwrap(), grads)
    };
    let (p, mut other) = (pictures(2), pictures(2));
    other.images.iter_mut().for_each(|v| *v = 255 - *v);
    let (losses, one) = gradients(&[1.0], &p);
    gradients(&[1.0, 1.0], &other); // what it leaves behind must not be seen
    let (again, two) = gradients(&[0.5, 0.5], &p);
    assert_eq!(losses, again);
    let largest = |g: &[f32]| g.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (mut moved, mut differs) = (0, false);
    for ((name, a), (_, b)) in one.iter().zip(&two) {
        let scale = largest(a);
        let error = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Sums over chunks start from another number, which rounds the last digits differently.
        assert!(error <= 1e-5 * scale, "{name}: {error} of {scale}");
        moved += usize::from(scale > 0.0);
    }
    assert_eq!(moved, one.len(), "every parameter has a gradient");
    for ((_, a), (_, b)) in one.iter().zip(&gradients(&[0.5], &p).1) {
        differs |= largest(a) > 1.5 * largest(b);
    }
    assert!(differs, "half the weight is half the gradient");
}

/// The batch norm tensors that a step changes in each mode, in the trained and in the frozen part of the backbone.
#[test]
fn batch_norm_moves_as_its_mode_says() {
    for (norm, moving) in [
        (NormMode::Train, &["weight", "bias", "running_mean", "running_var"][..]),
        (NormMode::Eval, &["weight", "bias"]),
        (NormMode::Frozen, &[]),
    ] {
        let s = StageSetup { frozen_stages: 1, ..setup(2, norm) };
        let (plans, device) = (plans(&s), Device::cpu());
        let mut e = engine(&device, &s);
        let norms = |e: &Engine| -> Vec<(String, Vec<f32>)> {
            let of_norm = e.store.all().iter().filter(|p| matches!(p.role(), Role::Norm | Role::Statistic));
            of_norm.map(|p| (p.name().to_string(), p.value().f32s().to_vec())).collect()
        };
        let before = norms(&e);
        load(&mut e, &pictures(2), 0);
        e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
        e.update(Some(&plans.update), 0.01, 1).unwrap();
        for ((name, old), (_, new)) in before.iter().zip(&norms(&e)) {
            let frozen = name.starts_with("backbone.bn1.") || name.starts_with("backbone.layer1.");
            let want = !frozen && moving.iter().any(|end| name.ends_with(end));
            assert_eq!(old != new, want, "{norm:?}: {name}");
        }
    }
}

#[test]
fn eight_pictures_are_learnt_by_heart() {
    let s = setup(8, NormMode::Train);
    let plans = plans(&s);
    let device = Device::cpu();
    let mut e = engine(&device, &s);
    let p = pictures(8);
    let mut first = 0.0;
    for step in 0..150 {
        load(&mut e, &p, step);
        e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
        e.update(Some(&plans.update), 0.02 * (1.0 - step as f64 / 150.0), step + 1).unwrap();
        if step == 0 {
            first = e.losses().unwrap().iter().sum();
        }
    }
    let last: f32 = e.losses().unwrap().iter().sum();
    eprintln!("losses {first} -> {last} {:?}", e.losses().unwrap());
    assert!(last < 0.25 * first, "{first} {last}");
    let batch = HostBatch {
        images: &p.images,
        sizes: &p.sizes,
        scale: &p.scale,
        gt_boxes: &[0.0; 32],
        gt_labels: &[-1; 8],
        gt_count: &[0; 8],
        ..Default::default()
    };
    e.eval_inputs(0).load(&batch).unwrap();
    e.eval_pass(Some(&plans.eval), 0).unwrap();
    let mut right = 0;
    for (i, found) in e.detections(0).unwrap().iter().enumerate() {
        for j in 0..2 {
            let want = &p.boxes[(i * 8 + j) * 4..][..4];
            right += usize::from(found.iter().any(|d| {
                let near = d.bbox.iter().zip(want).all(|(a, b)| (a - b).abs() < 4.0);
                near && d.score > 0.5 && d.class == p.labels[i * 8 + j] as usize
            }));
        }
    }
    assert!(right >= 15, "{right} of 16 squares found");
}

/// Every detector family on both kinds of backbone: memory in use is the planned memory, and every parameter receives a
/// finite gradient that is not zero.
#[test]
fn every_detector_on_every_backbone() {
    use upres::models::config::{BackboneKind, Detector};
    for detector in Detector::ALL {
        for kind in [BackboneKind::Resnet18, BackboneKind::SwinT] {
            let what = format!("{detector:?} on {kind:?}");
            let model = small_of(detector, kind);
            let s = setup_of(&model, 2, NormMode::Train);
            let (plans, device) = (plans_of(&model, &Device::cpu(), &s), Device::cpu());
            let mut e = engine_of(&model, &device, &s);
            load(&mut e, &pictures(2), 0);
            e.train_pass(Some(&plans.pass), 0, 1.0, true, Sampling::Random).unwrap();
            let losses = e.losses().unwrap();
            assert!(losses.iter().all(|l| l.is_finite()) && losses[0] > 0.0, "{what}: {losses:?}");
            assert_eq!(losses.len(), e.loss_names().len());
            for p in e.store.trainable() {
                p.finish_grad().unwrap();
                let grad = p.grad();
                let reached = grad.as_ref().unwrap().f32s().iter().any(|g| *g != 0.0);
                // A later cascade stage may have no positive yet, and the coarsest pyramid level no object.
                let may_miss =
                    p.name().contains("fc_reg") || p.name().contains("fpn_convs") || p.name().contains("lateral");
                assert!(reached || may_miss, "{what}: no gradient reaches {}", p.name());
            }
            assert_eq!(e.first_non_finite().unwrap(), None, "{what}");
            e.update(Some(&plans.update), 0.001, 1).unwrap();
            e.eval_pass(Some(&plans.eval), 0).unwrap();
            let masks: Vec<usize> = e.detections(0).unwrap().iter().flatten().map(|d| d.mask_logits.len()).collect();
            assert!(masks.iter().all(|m| *m == model.mask_size().map_or(0, |s| s * s)), "{what}");
            let peak = plans.pass.peak_bytes().max(plans.update.peak_bytes()).max(plans.eval.peak_bytes());
            assert_eq!(device.arena_high_water(), peak, "{what}");
            assert_eq!(device.persistent_bytes(), plans.persistent, "{what}");
        }
    }
}

/// Rematerialisation changes nothing but memory: losses, gradients, running statistics and updated weights are the same
/// to the bit, also with a frozen stem and with randomly dropped branches.
#[test]
fn what_is_recomputed_is_what_is_kept() {
    use upres::models::config::{BackboneKind, Detector};
    let cases = [
        (BackboneKind::Resnet18, NormMode::Train, -1),
        (BackboneKind::Resnet50, NormMode::Eval, 1),
        (BackboneKind::Resnet50, NormMode::Frozen, 4),
        (BackboneKind::SwinT, NormMode::Train, -1),
        (BackboneKind::SwinT, NormMode::Train, 2),
    ];
    for (kind, norm, frozen_stages) in cases {
        let mut model = small_of(Detector::MaskRcnn, kind);
        model.backbone.drop_path = 0.5;
        let mut memory = Vec::new();
        let mut run = |recompute| {
            let s = StageSetup { recompute, frozen_stages, ..setup_of(&model, 2, norm) };
            let (plans, device) = (plans_of(&model, &Device::cpu(), &s), Device::cpu());
            let mut e = engine_of(&model, &device, &s);
            load(&mut e, &pictures(2), 0);
            for (weight, first) in [(0.25, true), (0.75, false)] {
                e.train_pass(Some(&plans.pass), 0, weight, first, Sampling::Random).unwrap();
            }
            assert_eq!(device.arena_high_water(), plans.pass.peak_bytes());
            memory.push(plans.pass.peak_bytes());
            let losses = e.losses().unwrap();
            e.store.trainable().for_each(|p| p.finish_grad().unwrap());
            let bits = |t: &Tensor| t.f32s().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let grads: Vec<_> = e.store.trainable().map(|p| bits(p.grad().as_ref().unwrap())).collect();
            e.update(Some(&plans.update), 0.01, 1).unwrap();
            let weights: Vec<_> = e.store.all().iter().map(|p| (p.name().to_string(), bits(&p.value()))).collect();
            (losses, grads, weights)
        };
        let kept = run(Recompute::None);
        for how in [Recompute::Norms, Recompute::Blocks] {
            let again = run(how);
            let what = format!("{kind:?}, {norm:?}, {frozen_stages} frozen, {how:?}");
            assert_eq!(kept.0, again.0, "{what}: losses");
            assert!(kept.1 == again.1, "{what}: gradients");
            for (a, b) in kept.2.iter().zip(&again.2) {
                assert!(a == b, "{what}: {} after the step", a.0);
            }
        }
        let (norms, blocks) = (memory[1], memory[2]);
        assert!(frozen_stages == 4 || blocks < memory[0], "{kind:?}, {norm:?}: {memory:?}");
        let can_save = kind == BackboneKind::SwinT || norm != NormMode::Frozen;
        assert_eq!(norms < memory[0], can_save, "{kind:?}, {norm:?}: {memory:?}");
    }
}

/// Where heads run backward at once, the mask head processes the RoIs in slices: loss and gradients equal those of all
/// RoIs at once up to the order of sums.
#[test]
fn slices_of_the_mask_head_are_the_whole() {
    use upres::models::Heads;
    use upres::models::config::{BackboneKind, Detector};
    use upres::ops::image_normalize::image_normalize;
    use upres::tape::Tape;
    use upres::tensor::DType;
    let mut model = small_of(Detector::MaskRcnn, BackboneKind::Resnet18);
    model.box_head.samples = 600; // 150 positives an image at most: 600 RoIs of 4 images, in 3 slices of 50 an image
    // Nearly every proposal is positive, so that every slice has some.
    (model.rpn.train_max, model.rpn.nms_iou) = (400, 0.95);
    (model.box_head.pos_iou, model.box_head.neg_iou, model.box_head.min_pos_iou) = (0.02, 0.02, 0.02);
    let device = Device::cpu();
    let s = setup_of(&model, 4, NormMode::Eval);
    let mut inputs = engine_of(&model, &device, &s);
    load(&mut inputs, &pictures(4), 0);
    let run = |seed: Option<Tensor>, inputs: &mut Engine| {
        let e = engine_of(&model, &device, &s);
        let one = || Tensor::from_slice(&device, &[1], &[1.0f32]).unwrap();
        let mut tape = seed.map_or_else(|| Tape::new(&device), |seed| Tape::training(&device, seed));
        let terms = e.model.losses(&mut tape, inputs.train_inputs(0), s.mode(), Sampling::Random).unwrap();
        let losses: Vec<f32> = terms.iter().map(|t| t.value.value().f32s()[0]).collect();
        tape.backward(terms.into_iter().map(|t| (t.value, one())).collect()).unwrap();
        let grads = e.store.trainable().map(|p| (p.name().to_string(), p.grad().as_ref().unwrap().f32s().to_vec()));
        (losses, grads.collect::<Vec<_>>())
    };
    let whole = run(None, &mut inputs);
    let e = engine_of(&model, &device, &s);
    let (mut tape, i) = (Tape::inference(&device), inputs.train_inputs(0));
    let image = image_normalize(&mut tape, &i.images, &i.sizes, PIXELS.mean, PIXELS.std, DType::F32).unwrap();
    let p = e.model.features(&mut tape, image, s.mode(), Some(i)).unwrap();
    let Heads::Mask(heads) = &e.model.heads else { panic!("a mask head") };
    let samples = heads.faster.train(&mut tape, &p, i, Sampling::Random, None).unwrap().1;
    let positives: Vec<i32> = samples.counts.i32s().chunks(2).map(|c| c[0]).collect();
    assert!(positives.iter().any(|&n| n > 100), "objects in every slice: {positives:?}");
    let slices = run(Some(Tensor::from_slice(&device, &[1], &[1.0f32]).unwrap()), &mut inputs);
    for (a, b) in whole.0.iter().zip(&slices.0) {
        assert!((a - b).abs() <= 1e-6 * a.abs(), "{:?} {:?}", whole.0, slices.0);
    }
    for ((name, a), (_, b)) in whole.1.iter().zip(&slices.1) {
        let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= 2e-5 * largest, "{name}: {error} of {largest}");
    }
}

/// Of linear layers alone: tables of positions, norms and heads start as they do with the paper's.
#[test]
fn linear_layers_of_swin_start_as_the_recipe_says() {
    use upres::models::config::{BackboneKind, Detector, SwinInit};
    let values = |init: SwinInit| {
        let mut model = small_of(Detector::FasterRcnn, BackboneKind::SwinT);
        model.backbone.init = init;
        let e = Engine::new(&Device::cpu(), &model, CLASSES, PIXELS, 7).unwrap();
        let all = e.store.all().iter().map(|p| (p.name().to_string(), p.shape(), p.value().f32s().to_vec()));
        all.collect::<Vec<_>>()
    };
    let (paper, lecun) = (values(SwinInit::TruncNormal), values(SwinInit::LecunNormal));
    let std = |v: &[f32]| (v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
    let mut changed = 0;
    for ((name, shape, a), (_, _, b)) in paper.iter().zip(&lecun) {
        if !name.starts_with("backbone.") || shape.len() != 2 || name.ends_with("_table") {
            assert!(a == b, "{name}");
            continue;
        }
        changed += 1;
        let (n, want) = (a.len() as f64, (1.0 / shape[1] as f64).sqrt());
        let noise = 5.0 / (2.0 * n).sqrt(); // five deviations of a sample's deviation
        assert!((std(a) / 0.02 - 1.0).abs() < noise, "{name}: {}", std(a));
        assert!((std(b) / want - 1.0).abs() < noise, "{name}: {} {want}", std(b));
    }
    assert_eq!(changed, 1 + 4 * 12 + 3, "patches; four of a block; merging");
}
