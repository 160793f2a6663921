//! Compares a recipe's detector with those of another program, key by key: settings that the other program does not
//! have, and settings with which it computes something else.

use super::program::Format;
use crate::models::config::{BoxHeadKind, Detector, FpnExtra, ModelConfig};

/// The first reason why the other program has no such detector, with the recipe's key in front; `None` if it has one.
pub(super) fn obstacle(format: Format, cfg: &ModelConfig) -> Option<String> {
    match format {
        Format::Mmdetection => None,
        Format::Torchvision => torchvision_obstacle(cfg),
    }
}

fn torchvision_obstacle(cfg: &ModelConfig) -> Option<String> {
    let (two_stage, retina) = (cfg.detector != Detector::RetinaNet, cfg.detector == Detector::RetinaNet);
    let (fpn, head, masks) = (&cfg.fpn, &cfg.box_head, &cfg.mask_head);
    let start = if retina { 3 } else { 2 };
    let mut first = None;
    let mut check = |bad: bool, key: &str, why: &str| {
        if bad && first.is_none() {
            first = Some(format!("model.{key}: {why}"));
        }
    };
    check(cfg.detector == Detector::CascadeRcnn, "detector", "torchvision has no Cascade R-CNN");
    check(cfg.backbone.kind.is_swin(), "backbone.kind", "torchvision has no detector on a Swin Transformer");
    check(
        two_stage && head.kind != BoxHeadKind::Shared2Fc,
        "box_head.kind",
        "torchvision's box head is two linear layers, \"shared_2fc\" (its _v2 has batch norm in its convolutions)",
    );
    check(two_stage && head.class_agnostic, "box_head.class_agnostic", "torchvision has deltas for each class");
    check(fpn.start != start, "fpn.start", &format!("torchvision's pyramid begins at P{start}"));
    check(fpn.levels != 5, "fpn.levels", "torchvision's pyramid has 5 levels");
    check(
        two_stage && fpn.extra != FpnExtra::Subsample,
        "fpn.extra",
        "torchvision's P6 is every second pixel of P5, \"subsample\"",
    );
    check(
        retina && fpn.extra == FpnExtra::Subsample,
        "fpn.extra",
        "torchvision's P6 and P7 are convolutions, \"conv_p5\" or \"conv_c5\"",
    );
    check(
        retina && !fpn.extra_relu,
        "fpn.extra_relu",
        "torchvision has a ReLU between P6 and P7, for which weights must be trained (or tuned): true",
    );
    check(
        two_stage && cfg.rpn.channels != fpn.channels,
        "rpn.channels",
        "torchvision's RPN has the channels of the pyramid",
    );
    check(retina && cfg.retina_head.convs != 4, "retina_head.convs", "torchvision's branches have 4");
    check(
        retina && cfg.retina_head.channels != fpn.channels,
        "retina_head.channels",
        "torchvision's branches have the channels of the pyramid",
    );
    check(
        cfg.detector == Detector::MaskRcnn && masks.convs == 0,
        "mask_head.convs",
        "torchvision's mask head has at least one",
    );
    first
}

/// Settings with which the same weights give other outputs there, each with the other program's value. The values are
/// the defaults of its builder functions (`fasterrcnn_resnet50_fpn` and so on).
pub(super) fn differences(format: Format, cfg: &ModelConfig) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |differs: bool, key: &str, have: String, there: &str| {
        if differs {
            notes.push(format!("model.{key} is {have}, there it is {there}"));
        }
    };
    let (detector, head, masks) = (cfg.detector, &cfg.box_head, &cfg.mask_head);
    let (two_stage, has_masks) = (detector != Detector::RetinaNet, detector == Detector::MaskRcnn);
    let rounded = if two_stage { cfg.rpn.anchor_rounding } else { cfg.retina_head.anchor_rounding };
    let rounding_key = if two_stage { "rpn.anchor_rounding" } else { "retina_head.anchor_rounding" };
    match format {
        Format::Mmdetection => {
            note(rounded, rounding_key, "true".into(), "false");
            let relu = cfg.fpn.extra_relu && cfg.fpn.extra != FpnExtra::Subsample;
            note(relu, "fpn.extra_relu", "true".into(), "false unless relu_before_extra_convs=True");
        }
        Format::Torchvision => {
            note(!rounded, rounding_key, "false".into(), "true");
            if two_stage {
                let ratio = head.sampling_ratio;
                note(head.aligned, "box_head.aligned", "true".into(), "false");
                note(ratio != 2, "box_head.sampling_ratio", ratio.to_string(), "2");
            } else {
                let conv = cfg.fpn.extra == FpnExtra::ConvC5;
                note(conv, "fpn.extra", "\"conv_c5\"".into(), "\"conv_p5\" unless LastLevelP6P7(2048, 256) is given");
                let anchors = cfg.retina_head.selection == crate::models::config::Selection::Anchors;
                note(anchors, "retina_head.selection", "\"anchors\"".into(), "\"pairs\"");
            }
            if has_masks {
                let ratio = masks.sampling_ratio;
                note(masks.aligned, "mask_head.aligned", "true".into(), "false");
                note(ratio != 2, "mask_head.sampling_ratio", ratio.to_string(), "2");
            }
        }
    }
    notes
}
