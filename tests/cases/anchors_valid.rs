//! Which anchors may be used, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::anchors_valid::{AnchorGrid, AnchorLevel, anchors_valid};

/// Whether an anchor in cell (y, x) of a level may be used in an image of these sizes (img_h, img_w, pad_h, pad_w).
fn naive(stride: f32, (y, x): (usize, usize), b: &[f32], size: &[f32], border: f32) -> u8 {
    let cell = (y as f32) < (size[2] / stride).ceil() && (x as f32) < (size[3] / stride).ceil();
    let low = b[0] >= -border && b[1] >= -border;
    let inside = border < 0.0 || (low && b[2] < size[1] + border && b[3] < size[0] + border);
    u8::from(cell && inside)
}

/// B, rows and columns of the first level, levels, anchors of a cell.
const CASES: &[Case] = &[
    case("no_image", &[0, 4, 4, 2, 3]),
    case("no_anchor", &[2, 0, 4, 1, 3]),
    case("one", &[1, 1, 1, 1, 1]),
    case("tail", &[3, 9, 13, 3, 3]),
    case("many_levels", &[2, 16, 16, 9, 1]), // more than one launch takes
    case("rpn", &[2, 40, 48, 5, 3]),
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [b, h, w, l, per_cell] = c.dims.try_into().unwrap();
        let levels: Vec<AnchorLevel> =
            (0..l).map(|i| AnchorLevel { h: h.div_ceil(1 << i), w: w.div_ceil(1 << i), stride_px: 4 << i }).collect();
        let cells = levels.iter().flat_map(|level| {
            let of_row = move |y| (0..level.w).map(move |x| (level.stride_px as f32, (y, x)));
            (0..level.h).flat_map(of_row)
        });
        let cells: Vec<_> = cells.flat_map(|cell| std::iter::repeat_n(cell, per_cell)).collect();
        let n = cells.len();
        let anchors = boxes_around(1, n, 4.0 * w.max(h) as f32, 16.0);
        let sizes = uniform(2, 4 * b, 1.0, 4.0 * h.max(1) as f32);
        for border in [-1.0, 0.0, 5.0] {
            let out = everywhere(|dev| {
                let boxes = tensor(dev, &[n, 4], &anchors);
                let grid = AnchorGrid { boxes: &boxes, levels: &levels, per_cell };
                Ok(vec![anchors_valid(grid, &tensor(dev, &[b, 4], &sizes), border)?])
            });
            let flag = |image: usize, i: usize| {
                naive(cells[i].0, cells[i].1, &anchors[4 * i..][..4], &sizes[4 * image..][..4], border)
            };
            let want: Vec<u8> =
                (0..b).flat_map(|image| (0..n).map(move |i| (image, i))).map(|(m, i)| flag(m, i)).collect();
            assert_eq!(out[0].u8s(), want, "{} border {border}", c.name);
        }
    }
}

#[test]
fn wrong_sizes_are_named() {
    let dev = Device::cpu();
    let boxes = tensor::<f32>(&dev, &[0, 4], &[]);
    let grid = AnchorGrid { boxes: &boxes, levels: &[], per_cell: 1 };
    let e = anchors_valid(grid, &tensor(&dev, &[1, 3], &[0.0f32; 3]), 0.0).unwrap_err().to_string();
    assert!(e.starts_with("anchors_valid: sizes: want [B,4]"), "{e}");
}
