//! The `[model]` table of a recipe: the detector's parts and all their numbers.
//!
//! Defaults are the paper's numbers for each detector ([`ModelConfig::paper`]; mmdetection 2.x configurations of arXiv
//! 2106.03112). This file only holds values: `src/recipe/keys.rs` and docs/recipes.md document every key with its
//! source.

mod backbone;
mod box_head;
mod cascade;
mod fpn;
mod mask_head;
mod retina_head;
mod rpn;

use serde::{Deserialize, Serialize};

pub use backbone::{BackboneConfig, BackboneKind, SwinInit};
pub use box_head::{BoxHeadConfig, BoxHeadKind};
pub use cascade::{CASCADE_STAGES, CascadeConfig};
pub use fpn::{FpnConfig, FpnExtra};
pub use mask_head::MaskHeadConfig;
pub use retina_head::{RetinaHeadConfig, Selection};
pub use rpn::RpnConfig;

use crate::detection::anchors::AnchorShapes;

/// The numbers of a whole detector. Tables that the chosen detector does not use ([`Detector::tables`]) have no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The detector family.
    pub detector: Detector,
    /// The feature extractor.
    pub backbone: BackboneConfig,
    /// The feature pyramid.
    pub fpn: FpnConfig,
    /// The region proposal network.
    pub rpn: RpnConfig,
    /// The second stage's box head; in Cascade R-CNN each of the three box heads.
    pub box_head: BoxHeadConfig,
    /// The numbers that differ between the three stages of Cascade R-CNN.
    pub cascade: CascadeConfig,
    /// The second stage's mask head.
    pub mask_head: MaskHeadConfig,
    /// RetinaNet's head.
    pub retina_head: RetinaHeadConfig,
}

/// Detector families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Ren et al. 2015, with a feature pyramid (Lin et al. 2017).
    #[default]
    FasterRcnn,
    /// Cai and Vasconcelos 2018.
    CascadeRcnn,
    /// He et al. 2017.
    MaskRcnn,
    /// Lin et al. 2017.
    #[serde(rename = "retinanet")]
    RetinaNet,
}

impl Detector {
    /// All families.
    pub const ALL: [Detector; 4] =
        [Detector::FasterRcnn, Detector::CascadeRcnn, Detector::MaskRcnn, Detector::RetinaNet];

    /// The value of `detector` in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Detector::FasterRcnn => "faster_rcnn",
            Detector::CascadeRcnn => "cascade_rcnn",
            Detector::MaskRcnn => "mask_rcnn",
            Detector::RetinaNet => "retinanet",
        }
    }

    /// The tables of `[model]` that describe the heads of this family.
    pub fn tables(self) -> &'static [&'static str] {
        match self {
            Detector::FasterRcnn => &["rpn", "box_head"],
            Detector::CascadeRcnn => &["rpn", "box_head", "cascade"],
            Detector::MaskRcnn => &["rpn", "box_head", "mask_head"],
            Detector::RetinaNet => &["retina_head"],
        }
    }
}

impl ModelConfig {
    /// The paper's numbers for this detector.
    pub fn paper(detector: Detector) -> ModelConfig {
        let mut cfg = ModelConfig { detector, ..ModelConfig::default() };
        match detector {
            Detector::FasterRcnn => {}
            Detector::MaskRcnn => cfg.box_head.match_low_quality = true,
            Detector::CascadeRcnn => {
                cfg.rpn.allowed_border = 0.0;
                cfg.rpn.smooth_l1_beta = 1.0 / 9.0;
                cfg.rpn.train_max = 2000;
                cfg.box_head.kind = BoxHeadKind::Shared2Fc;
                cfg.box_head.class_agnostic = true;
                cfg.box_head.smooth_l1_beta = 1.0;
            }
            Detector::RetinaNet => {
                cfg.fpn.start = 3;
                cfg.fpn.extra = FpnExtra::ConvC5;
            }
        }
        cfg
    }

    /// The shapes of the detector's anchors.
    pub fn anchors(&self) -> AnchorShapes {
        match self.detector {
            Detector::RetinaNet => self.retina_head.anchors(),
            _ => self.rpn.anchors(),
        }
    }

    /// Strides in pixels of the levels that RoI features come from: P2 to P5.
    pub fn roi_strides(&self) -> Vec<f32> {
        self.fpn.strides().iter().take(4).map(|&s| s as f32).collect()
    }

    /// The largest number of detections in an image.
    pub fn max_detections(&self) -> usize {
        match self.detector {
            Detector::RetinaNet => self.retina_head.max_detections,
            _ => self.box_head.max_detections,
        }
    }

    /// IoU threshold of the final NMS: of two boxes of a class that overlap more, only the better is kept.
    pub fn nms_iou(&self) -> f32 {
        match self.detector {
            Detector::RetinaNet => self.retina_head.nms_iou,
            _ => self.box_head.nms_iou,
        }
    }

    /// Side of the predicted masks; `None` for detectors without masks.
    pub fn mask_size(&self) -> Option<usize> {
        (self.detector == Detector::MaskRcnn).then_some(2 * self.mask_head.pool)
    }
}
