//! Rows by index and the gradient that adds up duplicates, against the definition.

use super::{Case, case};
use crate::support::tensors::*;
use upres::device::Device;
use upres::ops::gather_i32::gather_i32;
use upres::ops::gather_rows::{gather_rows, gather_rows_of};
use upres::tape::Tape;

/// The definition: row `idx` of its image, zeros where there is no such row; and the gradient of `x`.
fn naive([b, n, s, width]: [usize; 4], x: &[f32], idx: &[i32], dy: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut y = vec![0.0; b * s * width];
    let mut dx = vec![0.0; b * n * width];
    for (r, &i) in idx.iter().enumerate() {
        let Some(i) = row(i, n) else { continue };
        let from = (r / s * n + i) * width;
        for j in 0..width {
            y[r * width + j] = f64::from(x[from + j]);
            dx[from + j] += f64::from(dy[r * width + j]);
        }
    }
    (y, dx)
}

fn row(i: i32, n: usize) -> Option<usize> {
    (0..n as i64).contains(&i64::from(i)).then_some(i as usize)
}

/// B, N, S, C.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 3, 4]),
    case("no_rows", &[2, 0, 3, 4]), // whatever is asked for is not there
    case("nothing_asked", &[2, 5, 0, 4]),
    case("no_columns", &[2, 5, 3, 0]),
    case("one", &[1, 1, 1, 1]),
    case("duplicates", &[3, 7, 33, 5]), // more rows asked for than there are
    case("tasks", &[2, 300, 5000, 4]),  // several tasks, and the border between images inside one
    case("wide", &[2, 3, 5, 20_000]),   // a row longer than a task
    case("narrow", &[3, 1500, 257, 1]), // rows of one number, one more than a block has threads
    case("rpn_800x1344", &[2, 268_569, 256, 4]),
];

fn dims(c: &Case) -> [usize; 4] {
    c.dims.try_into().unwrap()
}

/// Indices of rows, -1, and indices beyond the last row.
fn indices(b: usize, n: usize, s: usize) -> Vec<i32> {
    let mut idx = integers(7, b * s, -1, n as i32 + 1);
    if let [first, .., last] = &mut idx[..] {
        (*first, *last) = (i32::MAX, i32::MIN);
    }
    idx
}

#[test]
fn forward_and_backward_equal_the_definition() {
    for c in CASES {
        let [b, n, s, width] = dims(c);
        let (x, idx) = (uniform(1, b * n * width, -1.0, 1.0), indices(b, n, s));
        let dy = uniform(2, b * s * width, -1.0, 1.0);
        let out = everywhere(|dev| {
            let mut tape = Tape::new(dev);
            let x = tape.leaf(tensor(dev, &[b, n, width], &x));
            let y = gather_rows(&mut tape, &x, &tensor(dev, &[b, s], &idx))?;
            let value = y.value().clone();
            let grads = tape.backward(vec![(y, tensor(dev, &[b, s, width], &dy))])?;
            Ok(vec![value, grads.get(&x).expect("dx").clone()])
        });
        let (y, dx) = naive(dims(c), &x, &idx, &dy);
        assert_eq!(out[0].shape(), [b, s, width], "{}", c.name);
        assert_close(c.name, &out[0].f32s(), &y, 0.0, 0.0);
        assert_close(c.name, &out[1].f32s(), &dx, 2e-6, 2e-6);
    }
}

/// If many rows of one image name the same index, their f32 gradients are summed in order, to the bit.
#[test]
fn duplicates_add_in_order() {
    let (b, n, s, width) = (2, 3, 3000, 5);
    let (idx, dy) = (integers(1, b * s, -1, n as i32), uniform(2, b * s * width, -1.0, 1.0));
    let out = everywhere_within(0.0, 0.0, |dev| {
        let mut tape = Tape::new(dev);
        let x = tape.leaf(tensor(dev, &[b, n, width], &vec![0.0f32; b * n * width]));
        let y = gather_rows(&mut tape, &x, &tensor(dev, &[b, s], &idx))?;
        let grads = tape.backward(vec![(y, tensor(dev, &[b, s, width], &dy))])?;
        Ok(vec![grads.get(&x).expect("dx").clone()])
    });
    let mut dx = vec![0.0f32; b * n * width];
    for (r, &i) in idx.iter().enumerate() {
        let Some(i) = row(i, n) else { continue };
        (0..width).for_each(|j| dx[(r / s * n + i) * width + j] += dy[r * width + j]);
    }
    assert_eq!(out[0].f32s(), dx);
}

#[test]
fn take_from_rows_that_all_images_share() {
    let x = uniform(3, 6 * 2, -1.0, 1.0);
    let out = everywhere(|dev| {
        let idx = tensor(dev, &[2, 3], &[5, -1, 0, 1, 6, 5]);
        Ok(vec![gather_rows_of(&tensor(dev, &[6, 2], &x), &idx)?, gather_rows_of(&tensor(dev, &[2, 3, 2], &x), &idx)?])
    });
    let rows = |rows: [Option<usize>; 6]| -> Vec<f32> {
        rows.iter().flat_map(|r| r.map_or([0.0; 2], |r| [x[2 * r], x[2 * r + 1]])).collect()
    };
    assert_eq!(out[0].f32s(), rows([Some(5), None, Some(0), Some(1), None, Some(5)]));
    // Each image has three rows of its own; those of the second begin at row 3.
    assert_eq!(out[1].f32s(), rows([None, None, Some(0), Some(4), None, None]));
    let dev = Device::cpu();
    let none = gather_rows_of(&tensor::<f32>(&dev, &[0, 4], &[]), &tensor(&dev, &[2, 1], &[0, -1])).unwrap();
    assert_eq!(none.f32s(), [0.0; 8]);
}

#[test]
fn integers_are_taken() {
    let out = everywhere(|dev| {
        let idx = tensor(dev, &[2, 3], &[2, -1, 0, 1, 3, i32::MIN]);
        Ok(vec![gather_i32(&tensor(dev, &[2, 3], &[10, 11, 12, 20, 21, 22]), &idx, -7)?])
    });
    assert_eq!(out[0].i32s(), [12, -7, 10, 21, -7, -7]);
    let dev = Device::cpu();
    for shape in [[0, 3], [2, 0]] {
        let idx = tensor::<i32>(&dev, &shape, &[]);
        assert!(gather_i32(&tensor(&dev, &[shape[0], 1], &vec![1; shape[0]]), &idx, 0).unwrap().shape() == shape);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let dev = Device::cpu();
    let x = tensor(&dev, &[2, 1, 1], &[0.0f32; 2]);
    let message = |t: &upres::tensor::Tensor| gather_rows_of(&x, t).unwrap_err().to_string();
    assert!(message(&tensor(&dev, &[3, 1], &[0; 3])).starts_with("gather_rows: idx: want [2, 1]"));
    assert!(message(&tensor(&dev, &[2, 1], &[0.0f32; 2])).starts_with("gather_rows: idx: want i32"));
    assert!(gather_rows_of(&x.reshape(&[2]).unwrap(), &tensor(&dev, &[2, 1], &[0; 2])).is_err());
}
