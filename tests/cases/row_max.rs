//! Largest element of each row, NaN included, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::row_max::row_max;

/// M, K.
const CASES: &[Case] = &[
    case("no_rows", &[0, 3]),
    case("one", &[1, 1]),
    case("tail", &[33, 7]),           // no vectors
    case("vectors", &[70, 80]),       // of four, of which the last threads of a row get fewer
    case("long", &[3, 20_000]),       // a row longer than a task
    case("tasks", &[5000, 36]),       // several tasks, several blocks
    case("retinanet", &[12_555, 80]), // a third of the anchors of an image of 448x448 pixels
];

#[test]
fn equals_the_definition() {
    for c in CASES {
        let [m, k] = c.dims.try_into().unwrap();
        let mut x = uniform(1, m * k, -9.0, 1.0);
        for (i, kind) in integers(2, m, 0, 9).into_iter().enumerate() {
            match kind {
                0 => x[i * k + i % k] = f32::NAN,
                1 => x[i * k..][..k].fill(f32::NEG_INFINITY),
                2 => x[i * k + (i + 1) % k] = f32::INFINITY,
                _ => {}
            }
        }
        let out = everywhere(|dev| Ok(vec![row_max(&tensor(dev, &[m, k], &x))?]));
        assert_eq!(out[0].shape(), [m]);
        let larger = |a: f32, &b: &f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
        let want: Vec<f32> = x.chunks(k).map(|row| row.iter().fold(f32::NEG_INFINITY, larger)).collect();
        assert_close(c.name, &out[0].f32s(), &wide(&want), 0.0, 0.0);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    assert_eq!(row_max(&tensor(&dev, &[2, 1, 2], &[1.0f32, 2.0, 4.0, 3.0])).unwrap().f32s(), [2.0, 4.0]);
    let e = row_max(&tensor::<f32>(&dev, &[2, 0], &[])).unwrap_err().to_string();
    assert!(e.starts_with("row_max: x: want [..,K]"), "{e}");
    assert!(row_max(&tensor(&dev, &[2], &[0; 2])).is_err());
}
