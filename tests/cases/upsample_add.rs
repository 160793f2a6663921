//! Nearest upsampling plus addition (the pyramid top-down path), against the definition and torch.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::upsample_add::upsample_add;
use upres::tape::Tape;
use upres::tensor::Tensor;

/// The definition: each pixel of `lateral` plus the pixel of `top` below it, and the gradient of `top`.
fn naive([_, ht, wt, h, w, c]: [usize; 6], top: &[f32], lateral: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f64>) {
    let (mut y, mut dtop) = (Vec::new(), vec![0.0; top.len()]);
    for i in 0..dy.len() {
        let (k, x, row) = (i % c, i / c % w, i / c / w);
        let from = (((row / h * ht) + (row % h) * ht / h) * wt + x * wt / w) * c + k;
        y.push(lateral[i] + top[from]);
        dtop[from] += f64::from(dy[i]);
    }
    (y, dtop)
}

/// N, HT, WT (top), H, W (lateral), C.
const CASES: &[Case] = &[
    case("empty", &[0, 2, 2, 4, 4, 8]),       // no image
    case("no_lateral", &[1, 2, 2, 0, 4, 8]),  // nothing to add to: the top's gradient is 0
    case("one", &[1, 1, 1, 1, 1, 1]),         // one pixel each
    case("one_to_many", &[2, 1, 1, 5, 3, 7]), // one pixel everywhere
    case("double", &[2, 5, 6, 10, 12, 33]),   // the usual case
    case("odd", &[1, 7, 11, 13, 22, 17]),     // sizes of a stride-2 network on odd sizes
    case("third", &[1, 3, 4, 8, 5, 4]),       // a factor that is no integer
    case("p2", &[2, 56, 56, 112, 112, 256]),  // the finest level of the paper's recipe at 2 images
];

/// y, dtop, dlateral.
fn run(
    device: &Device,
    [n, ht, wt, h, w, c]: [usize; 6],
    top: &[f32],
    lateral: &[f32],
    dy: &[f32],
) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(device);
    let top = tape.leaf(Tensor::from_slice(device, &[n, ht, wt, c], top)?);
    let lateral = tape.leaf(Tensor::from_slice(device, &[n, h, w, c], lateral)?);
    let y = upsample_add(&mut tape, &top, &lateral)?;
    let dy = Tensor::from_slice(device, &[n, h, w, c], dy)?;
    let value = y.value().clone();
    let grads = tape.backward(vec![(y, dy)])?;
    Ok(vec![value, grads.get(&top).expect("dtop").clone(), grads.get(&lateral).expect("dlateral").clone()])
}

fn run_case(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let [n, ht, wt, h, w, c] = case.dims.try_into().unwrap();
    let (top, map) = (n * ht * wt * c, n * h * w * c);
    run(
        device,
        [n, ht, wt, h, w, c],
        &uniform(1, top, -1.0, 1.0),
        &uniform(2, map, -1.0, 1.0),
        &uniform(3, map, -1.0, 1.0),
    )
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let [n, ht, wt, h, w, c] = case.dims.try_into().unwrap();
        let (top, lateral) = (uniform(1, n * ht * wt * c, -1.0, 1.0), uniform(2, n * h * w * c, -1.0, 1.0));
        let dy = uniform(3, n * h * w * c, -1.0, 1.0);
        let (y, dtop) = naive([n, ht, wt, h, w, c], &top, &lateral, &dy);
        let out = everywhere(|dev| run_case(dev, case));
        assert!(out[0].f32s() == y, "{}: y", case.name);
        assert_close(&format!("{}: dtop", case.name), &out[1].f32s(), &dtop, 1e-5, 1e-5);
        assert!(out[2].f32s() == dy, "{}: dlateral", case.name);
    }
}

#[test]
fn in_16_bits() {
    let [n, ht, wt, h, w, c] = [2, 5, 6, 10, 12, 33];
    in_halves(1.0, |dev, halves| {
        let mut tape = Tape::new(dev);
        let top = tape.leaf(halves.tensor(dev, &[n, ht, wt, c], &uniform(1, n * ht * wt * c, -1.0, 1.0)));
        let lateral = tape.leaf(halves.tensor(dev, &[n, h, w, c], &uniform(2, n * h * w * c, -1.0, 1.0)));
        let y = upsample_add(&mut tape, &top, &lateral)?;
        let dy = halves.tensor(dev, &[n, h, w, c], &uniform(3, n * h * w * c, -1.0, 1.0));
        let value = y.value().clone();
        let grads = tape.backward(vec![(y, dy)])?;
        Ok(vec![value, grads.get(&top).expect("dtop").clone()])
    });
}

#[test]
fn as_torch() {
    let file = OpFixture::open("nn_layers");
    for name in ["5x7_9x13", "5x6_10x12", "3x4_5x7", "7x11_13x22"].map(|n| format!("nearest.{n}")) {
        let (top, [n, c, ht, wt]) = file.nhwc(&format!("{name}.x0"));
        let (y, [_, _, h, w]) = file.nhwc(&format!("{name}.y"));
        let (dy, _) = file.nhwc(&format!("{name}.gout"));
        let out = run(&Device::cpu(), [n, ht, wt, h, w, c], &top, &vec![0.0; y.len()], &dy).unwrap();
        assert!(out[0].f32s() == y, "{name}: y");
        let want = file.nhwc(&format!("{name}.dx0")).0;
        assert!(out[1].f32s().iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{name}: dx");
    }
}

/// torch multiplies by the quotient of the sizes in f32. For the sizes that a stride-2 network makes, its rounding
/// changes no source pixel.
#[test]
fn rounds_as_torch_where_it_matters() {
    for to in 1..2000usize {
        let from = to.div_ceil(2);
        let scale = from as f32 / to as f32;
        for i in 0..to {
            let torch = if to == 2 * from { i >> 1 } else { ((i as f32 * scale).floor() as usize).min(from - 1) };
            assert_eq!(i * from / to, torch, "{from} to {to}, pixel {i}");
        }
    }
}
