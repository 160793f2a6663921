//! Patches to channels, against the definition and mmdetection's patch embedding and merging.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::conv2d::Activation;
use upres::ops::layer_norm::layer_norm;
use upres::ops::linear::linear;
use upres::ops::space_to_depth::space_to_depth;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// The definition: the pixels of each `k` x `k` block side by side, 0 for those beside the map; and the gradient of
/// `x`.
fn naive([h, w, c, k]: [usize; 4], x: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (oh, ow) = (h.div_ceil(k), w.div_ceil(k));
    let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
    for i in 0..dy.len() {
        let (ch, kw, kh) = (i % c, i / c % k, i / c / k % k);
        let block = i / (k * k * c);
        let (at_h, at_w, image) = (block / ow % oh * k + kh, block % ow * k + kw, block / ow / oh);
        if at_h < h && at_w < w {
            let from = ((image * h + at_h) * w + at_w) * c + ch;
            y[i] = x[from];
            dx[from] = dy[i];
        }
    }
    (y, dx)
}

/// N, H, W, C, k.
const CASES: &[Case] = &[
    case("empty", &[0, 8, 8, 4, 2]),           // no image
    case("no_rows", &[1, 0, 8, 4, 2]),         // no pixel
    case("no_channels", &[1, 8, 8, 0, 2]),     // no element
    case("one", &[1, 1, 1, 1, 1]),             // a block of one pixel: a copy
    case("mostly_outside", &[1, 1, 1, 3, 4]),  // one pixel and 15 beside the map
    case("tail", &[2, 7, 5, 3, 2]),            // odd sizes, channels that fill no vector
    case("image", &[2, 32, 44, 3, 4]),         // patches: a row of a block is 12 elements
    case("odd_image", &[1, 30, 37, 3, 4]),     // as above, and the last patch is cut
    case("cut_by_a_row", &[1, 9, 8, 4, 4]),    // cut below, not at the side
    case("cut_by_a_column", &[1, 8, 9, 8, 2]), // cut at the side, in whole vectors
    case("merge", &[2, 28, 28, 96, 2]),        // patch merging
    case("large_k", &[1, 65, 64, 2, 64]),      // the largest block
    case("patches_448", &[2, 448, 448, 3, 4]), // the images of a recipe
];

fn run(dev: &Device, [n, h, w, c, k]: [usize; 5], make: &dyn Fn(&[usize], &[f32]) -> Tensor) -> Result<Vec<Tensor>> {
    let mut tape = Tape::new(dev);
    let x = tape.leaf(make(&[n, h, w, c], &uniform(1, n * h * w * c, -1.0, 1.0)));
    let y = space_to_depth(&mut tape, &x, k)?;
    let dy = make(y.shape(), &uniform(2, y.value().numel(), -1.0, 1.0));
    let value = y.value().clone();
    let dx = tape.backward(vec![(y, dy)])?.get(&x).expect("dx").clone();
    Ok(vec![value, dx])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let [n, h, w, c, k] = case.dims.try_into().unwrap();
        let (oh, ow) = (h.div_ceil(k), w.div_ceil(k));
        let (x, dy) = (uniform(1, n * h * w * c, -1.0, 1.0), uniform(2, n * oh * ow * k * k * c, -1.0, 1.0));
        let (y, dx) = naive([h, w, c, k], &x, &dy);
        let out = everywhere(|dev| run(dev, [n, h, w, c, k], &|shape, data| tensor(dev, shape, data)));
        assert_eq!(out[0].shape(), [n, oh, ow, k * k * c], "{}", case.name);
        assert!(out[0].f32s() == y, "{}: y", case.name);
        assert!(out[1].f32s() == dx, "{}: dx", case.name);
    }
}

/// The op only moves numbers, so nothing is rounded in 16 bits either.
#[test]
fn in_16_bits() {
    for case in CASES.iter().filter(|c| c.dims.iter().product::<usize>() < 200_000) {
        let dims = case.dims.try_into().unwrap();
        in_halves(1e-9, |dev, halves| run(dev, dims, &|shape, data| halves.tensor(dev, shape, data)));
    }
}

#[test]
fn bad_arguments() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let x = tape.leaf(Tensor::zeros(&dev, &[1, 4, 4, 1], DType::F32).unwrap());
    for k in [0, 65, usize::MAX] {
        let error = space_to_depth(&mut tape, &x, k).unwrap_err().to_string();
        assert!(error.starts_with("space_to_depth: blocks of"), "{error}");
    }
    let flat = tape.leaf(Tensor::zeros(&dev, &[4, 4], DType::F32).unwrap());
    assert!(space_to_depth(&mut tape, &flat, 2).is_err());
    let bytes = tape.leaf(Tensor::zeros(&dev, &[1, 4, 4, 3], DType::U8).unwrap());
    assert!(space_to_depth(&mut tape, &bytes, 2).is_err());
}

/// `[.., c·k²]` in mmdetection's order (c, kh, kw) to ours (kh, kw, c).
fn reorder(rows: &[f32], c: usize, k: usize) -> Vec<f32> {
    let row = c * k * k;
    (0..rows.len()).map(|i| rows[i / row * row + i % c * k * k + i % row / c]).collect()
}

/// mmdetection's patch embedding (the op and a linear layer) and patch merging (the op, a layer norm and a linear
/// layer).
#[test]
fn as_mmdetection() {
    let file = OpFixture::open("swin_layers");
    let dev = Device::cpu();
    for (name, n, [h, w]) in
        [("embed", 1, [30, 37]), ("merge_even", 2, [6, 8]), ("merge_odd", 2, [7, 5]), ("merge_oddw", 2, [4, 5])]
    {
        let get = |key: &str| file.f32(&format!("{name}.{key}"));
        let embed = name == "embed";
        let (k, layer) = if embed { (4, "projection") } else { (2, "reduction") };
        // Tokens [N,H·W,C] are in our order already.
        let (x, c) = if embed { (file.nhwc("embed.x0").0, 3) } else { (get("x0"), get("x0").len() / (n * h * w)) };
        let (inner, tokens) = (k * k * c, n * h.div_ceil(k) * w.div_ceil(k));
        let norm = |key: &str| if embed { get(key) } else { reorder(&get(key), c, k) };
        let weight = reorder(&get(&format!("param.{layer}.weight")), c, k);
        let out_c = weight.len() / inner;
        let mut tape = Tape::new(&dev);
        let leaf = tape.leaf(tensor(&dev, &[n, h, w, c], &x));
        let blocks = space_to_depth(&mut tape, &leaf, k).unwrap();

        let mut rest = Tape::new(&dev);
        let start = rest.leaf(blocks.value().reshape(&[tokens, inner]).unwrap());
        let gamma = norm("param.norm.weight");
        let g = rest.leaf(tensor(&dev, &[gamma.len()], &gamma));
        let b = rest.leaf(tensor(&dev, &[gamma.len()], &norm("param.norm.bias")));
        let weight = rest.leaf(tensor(&dev, &[out_c, inner], &weight));
        let (y, bias) = if embed {
            let bias = rest.leaf(tensor(&dev, &[out_c], &get("param.projection.bias")));
            let y = linear(&mut rest, &start, &weight, Some(&bias), Activation::None).unwrap();
            (layer_norm(&mut rest, &y, &g, &b, 1e-5).unwrap(), Some(bias))
        } else {
            let y = layer_norm(&mut rest, &start, &g, &b, 1e-5).unwrap();
            (linear(&mut rest, &y, &weight, None, Activation::None).unwrap(), None)
        };
        let near = |what: &str, got: &[f32], want: &[f32]| {
            let largest = want.iter().fold(0.0f64, |m, &v| m.max(f64::from(v.abs())));
            assert_close(&format!("{name}: {what}"), got, &wide(want), 1e-5 * largest, 1e-4);
        };
        near("y", y.value().f32s(), &get("y"));
        let dy = tensor(&dev, y.shape(), &get("gout"));
        let grads = rest.backward(vec![(y, dy)]).unwrap();
        near("dweight", grads.get(&weight).unwrap().f32s(), &reorder(&get(&format!("dparam.{layer}.weight")), c, k));
        near("dgamma", grads.get(&g).unwrap().f32s(), &norm("dparam.norm.weight"));
        near("dbeta", grads.get(&b).unwrap().f32s(), &norm("dparam.norm.bias"));
        if let Some(bias) = bias {
            near("dbias", grads.get(&bias).unwrap().f32s(), &get("dparam.projection.bias"));
        }
        let dblocks = grads.get(&start).unwrap().reshape(blocks.shape()).unwrap();
        let dx = tape.backward(vec![(blocks, dblocks)]).unwrap().get(&leaf).unwrap().clone();
        near("dx", dx.f32s(), &if embed { file.nhwc("embed.dx0").0 } else { get("dx0") });
    }
}
