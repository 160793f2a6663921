//! Test-time augmentation: detects objects in several views of each picture, mirrored or at other sizes, and merges
//! them.
//!
//! A view is an ordinary evaluation pass with buckets and memory plans of its own. Boxes and masks are mapped back to
//! the picture's pixels exactly; views are merged on the host, class by class ([`merge`]). Main types: [`Tta`],
//! [`View`].

use std::collections::BTreeMap;
use std::str::FromStr;

use super::found::{Detection, ImageDetections};
use crate::data::Pipeline;
use crate::error::Result;
use crate::recipe::{Resize, StageConfig};

/// A scaled or mirrored version of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Scale relative to the evaluation size.
    pub scale: f64,
    /// Mirrored horizontally.
    pub flip: bool,
}

impl View {
    /// The evaluation without augmentation.
    pub const PLAIN: View = View { scale: 1.0, flip: false };

    /// The evaluation pipeline of a stage for this view.
    pub(super) fn pipeline(&self, stage: &StageConfig) -> Pipeline {
        let times = |side: u32| (f64::from(side) * self.scale).round() as u32;
        let resize = match stage.eval_resize() {
            resize if self.scale == 1.0 => resize,
            // A multiple of 32, so that it divides evenly on all levels of the pyramid.
            Resize::FitCrop { size, jitter } => {
                Resize::FitCrop { size: ((f64::from(times(size)) / 32.0).round() as u32 * 32).max(32), jitter }
            }
            Resize::KeepRatio { long, short, pad_to, buckets } => {
                Resize::KeepRatio { long: times(long), short: times(short), pad_to, buckets }
            }
        };
        let plain = crate::engine::feed::eval_pipeline(&StageConfig { eval_resize: Some(resize), ..stage.clone() });
        Pipeline { flip: if self.flip { 1.0 } else { 0.0 }, ..plain }
    }

    /// Maps detections in this view back to the picture, which is `width` pixels wide.
    pub(super) fn restore(&self, found: &mut [Detection], width: u32) -> Result<()> {
        if self.flip {
            for d in found {
                let ([x0, y0, x1, y1], w) = (d.bbox, width as f32);
                d.bbox = [w - x1, y0, w - x0, y1];
                d.mask = d.mask.take().map(|m| m.mirrored()).transpose()?;
            }
        }
        Ok(())
    }
}

/// The views of a picture, parsed from the command line: `flip`, `scales=0.8,1.0,1.2`, `scales=0.8,1.0,1.2,flip`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tta {
    /// All scales, then the same scales mirrored.
    pub views: Vec<View>,
}

/// Allowed scales.
const SCALES: std::ops::RangeInclusive<f64> = 0.25..=4.0;
/// The most views: each costs as much as an evaluation.
const MOST_VIEWS: usize = 32;

impl FromStr for Tta {
    type Err = String;

    fn from_str(text: &str) -> Result<Tta, String> {
        let mut scales = Vec::new();
        let mut flip = false;
        // Items after `scales=` are further scales.
        let mut listing = false;
        for item in text.split(',').map(str::trim) {
            let number = item.strip_prefix("scales=");
            listing |= number.is_some();
            if item == "flip" {
                if std::mem::replace(&mut flip, true) {
                    return Err("flip is named twice".into());
                }
                continue;
            }
            let Some(number) = number.or(listing.then_some(item)) else {
                return Err(format!("{item:?}: want flip, scales=0.8,1.0,1.2 or scales=0.8,1.0,1.2,flip"));
            };
            match number.trim().parse::<f64>() {
                Ok(v) if !SCALES.contains(&v) => {
                    return Err(format!("scale {v}: want {} to {}", SCALES.start(), SCALES.end()));
                }
                Ok(v) if scales.contains(&v) => return Err(format!("scale {v} is named twice")),
                Ok(v) => scales.push(v),
                Err(_) => return Err(format!("scale {number:?}: want a number, as in scales=0.8,1.0,1.2")),
            }
        }
        if scales.is_empty() {
            scales.push(1.0);
        }
        let flips: &[bool] = if flip { &[false, true] } else { &[false] };
        let views: Vec<View> =
            flips.iter().flat_map(|&flip| scales.iter().map(move |&scale| View { scale, flip })).collect();
        if views.len() > MOST_VIEWS {
            return Err(format!(
                "{} views: want {MOST_VIEWS} or fewer, each takes as long as an evaluation",
                views.len()
            ));
        }
        Ok(Tta { views })
    }
}

/// Merges the detections of several views of the same pictures. The detections of a picture are visited by falling
/// score (equal scores in the order of the views). One is dropped if its box overlaps a kept box of its class from
/// another view with an IoU above `iou`; at most `most` are kept. A kept box keeps its mask.
///
/// Boxes of one view are not compared: the detector has already done so with the same threshold. A single view is
/// unchanged.
///
/// Reference: detectron2's `GeneralizedRCNNWithTTA`, which also averages the masks of the views.
pub fn merge(views: Vec<Vec<ImageDetections>>, iou: f32, most: usize) -> Vec<ImageDetections> {
    let mut all: BTreeMap<usize, Vec<(usize, Detection)>> = BTreeMap::new();
    for (view, images) in views.into_iter().enumerate() {
        for image in images {
            all.entry(image.index).or_default().extend(image.found.into_iter().map(|d| (view, d)));
        }
    }
    let of_image = |(index, mut found): (usize, Vec<(usize, Detection)>)| {
        found.sort_by(|a, b| b.1.score.total_cmp(&a.1.score)); // stable
        let mut kept: Vec<(usize, Detection)> = Vec::new();
        for (view, d) in found {
            let rivals = kept.iter().filter(|(v, k)| *v != view && k.class == d.class);
            if kept.len() < most && !rivals.map(|(_, k)| overlap(k.bbox, d.bbox)).any(|v| v > iou) {
                kept.push((view, d));
            }
        }
        ImageDetections { index, found: kept.into_iter().map(|(_, d)| d).collect() }
    };
    all.into_iter().map(of_image).collect()
}

/// Intersection over union. It is NaN for two empty boxes, which suppresses nothing, like in the NMS op.
fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |k: usize| (a[k + 2].min(b[k + 2]) - a[k].max(b[k])).max(0.0);
    let area = |c: [f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let both = side(0) * side(1);
    both / (area(a) + area(b) - both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::RleMask;

    fn views(text: &str) -> Vec<(f64, bool)> {
        text.parse::<Tta>().unwrap().views.iter().map(|v| (v.scale, v.flip)).collect()
    }

    #[test]
    fn views_are_read() {
        assert_eq!(views("flip"), [(1.0, false), (1.0, true)]);
        assert_eq!(views("scales=1"), [(1.0, false)]);
        let both = [(0.8, false), (1.0, false), (0.8, true), (1.0, true)];
        assert_eq!(views("scales=0.8,1.0,flip"), both);
        assert_eq!(views("flip, scales=0.8, 1.0"), both);
        for (text, part) in [
            ("", "want flip"),
            ("flop", "\"flop\": want flip"),
            ("0.8", "want flip"),
            ("flip,flip", "twice"),
            ("scales=", "want a number"),
            ("scales=0.8,,1", "want a number"),
            ("scales=1,1.0", "scale 1 is named twice"),
            ("scales=NaN", "want 0.25 to 4"),
            ("scales=0", "want 0.25 to 4"),
            ("scales=-1", "want 0.25 to 4"),
            ("scales=100", "want 0.25 to 4"),
            ("scales=big", "\"big\""),
        ] {
            let e = text.parse::<Tta>().unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
        let many: Vec<String> = (0..40).map(|i| format!("{}", 1.0 + f64::from(i) / 64.0)).collect();
        assert!(format!("scales={}", many.join(",")).parse::<Tta>().unwrap_err().contains("40 views"));
    }

    #[test]
    fn sizes_are_scaled() {
        let fixed = |size| StageConfig { resize: Resize::FitCrop { size, jitter: [0.8, 1.2] }, ..Default::default() };
        let side = |size, scale| match (View { scale, flip: true }).pipeline(&fixed(size)).geometry {
            crate::data::Geometry::Fixed { shape, jitter } => (shape.width, jitter),
            other => panic!("{other:?}"),
        };
        assert_eq!(side(100, 1.0), (100, (1.0, 1.0)), "as it is");
        assert_eq!((side(448, 0.8).0, side(448, 1.25).0, side(32, 0.25).0), (352, 576, 32));
        let p = View { scale: 1.5, flip: true }.pipeline(&StageConfig::default());
        assert!(matches!(p.geometry, crate::data::Geometry::Buckets { long: 2000, short: 1200, .. }) && p.flip == 1.0);
        assert_eq!(View::PLAIN.pipeline(&fixed(96)), crate::engine::feed::eval_pipeline(&fixed(96)));
    }

    fn found(x: f32, score: f32, class: usize) -> Detection {
        Detection { bbox: [x, 0.0, x + 10.0, 10.0], score, class, mask: None }
    }

    fn image(index: usize, found: Vec<Detection>) -> ImageDetections {
        ImageDetections { index, found }
    }

    #[test]
    fn views_are_merged_class_by_class() {
        let a = vec![image(0, vec![found(0.0, 0.9, 0), found(1.0, 0.5, 1)]), image(2, vec![])];
        let b = vec![image(0, vec![found(2.0, 0.8, 0), found(8.0, 0.7, 0), found(1.0, 0.6, 1)]), image(2, vec![])];
        let merged = merge(vec![a, b], 0.5, 100);
        assert_eq!(merged.iter().map(|i| i.index).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(merged[0].found, [found(0.0, 0.9, 0), found(8.0, 0.7, 0), found(1.0, 0.6, 1)]);
        // Boxes of one view stay, whatever they overlap; the best are kept.
        let close = || vec![image(1, vec![found(0.0, 0.9, 0), found(0.5, 0.8, 0), found(1.0, 0.1, 0)])];
        assert_eq!(merge(vec![close()], 0.5, 100)[0].found, close()[0].found);
        assert_eq!(merge(vec![close(), close()], 0.5, 2)[0].found, close()[0].found[..2]);
    }

    #[test]
    fn mirrored_views_come_back() {
        // In an image of 9 × 7 pixels, down the columns.
        let mask = RleMask::from_counts((9, 7), vec![9, 3, 5, 2, 4, 1, 1, 1, 37]);
        let mut all = [Detection { mask: Some(mask.clone()), bbox: [1.0, 2.0, 4.0, 5.0], score: 0.5, class: 3 }];
        View { scale: 0.5, flip: false }.restore(&mut all, 9).unwrap();
        assert_eq!(all[0].bbox, [1.0, 2.0, 4.0, 5.0]);
        View { scale: 0.5, flip: true }.restore(&mut all, 9).unwrap();
        assert_eq!((all[0].bbox, all[0].mask.as_ref()), ([5.0, 2.0, 8.0, 5.0], Some(&mask.mirrored().unwrap())));
    }
}
