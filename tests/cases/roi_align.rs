use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::roi_align::{RoiAlign, roi_align};
use upres::tape::Tape;
use upres::tensor::Tensor;

/// N, S, C, side of the finest level. What is pooled is tested beside the op, against the definition and mmcv; here every
/// way of running it.
const CASES: &[Case] = &[
    case("no_images", &[0, 3, 4, 16]),
    case("no_boxes", &[2, 0, 4, 16]),
    case("one", &[1, 1, 1, 4]),
    case("tail", &[2, 13, 33, 20]),
    case("box_head", &[2, 64, 64, 40]),
];

/// y, then the gradients of two levels.
fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [n, s, c, side] = case.dims.try_into().unwrap();
    let p = RoiAlign { ph: 7, pw: 7, sampling_ratio: 0, aligned: true, finest_scale_px: 28.0 };
    let mut tape = Tape::new(device);
    let mut level = |seed, side: usize| {
        let data = uniform(seed, n * side * side * c, -1.0, 1.0);
        tape.leaf(tensor(device, &[n, side, side, c], &data))
    };
    let (fine, coarse) = (level(1, side), level(2, side / 2));
    let rois = tensor(device, &[n, s, 4], &boxes(3, n * s, 4.0 * side as f32));
    let valid = tensor(device, &[n, s], &integers(4, n * s, -1, 3));
    let y = roi_align(&mut tape, &[&fine, &coarse], &[4.0, 8.0], &rois, &valid, p)?;
    let mut out = vec![y.value().clone()];
    let dy = tensor(device, y.shape(), &uniform(5, y.value().numel(), -1.0, 1.0));
    let grads = tape.backward(vec![(y, dy)])?;
    out.extend([&fine, &coarse].map(|v| grads.get(v).expect("a gradient").clone()));
    Ok(out)
}

/// Also: what is pooled is a linear function of the levels, so `<dy, y> = <dx, x>`; and rows that are not valid are 0.
#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let [n, s, c, side]: [usize; 4] = case.dims.try_into().unwrap();
        let out = everywhere(|dev| run(dev, case));
        let (y, valid) = (out[0].f32s(), integers(4, n * s, -1, 3));
        for (row, valid) in y.chunks(49 * c).zip(valid) {
            assert!(valid >= 0 || row.iter().all(|&v| v == 0.0), "{}: a row that is not valid", case.name);
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let norm = |a: &[f32]| dot(a, a).sqrt();
        let dy = uniform(5, y.len(), -1.0, 1.0);
        let levels = [(1, side), (2, side / 2)].map(|(seed, side)| uniform(seed, n * side * side * c, -1.0, 1.0));
        let back = dot(&out[1].f32s(), &levels[0]) + dot(&out[2].f32s(), &levels[1]);
        let (there, scale) = (dot(&dy, &y), norm(&dy) * norm(&y));
        assert!((there - back).abs() <= 1e-6 * scale, "{}: {there} and {back}", case.name);
    }
}
