//! Pixels to normalised floats, against the definition and mmcv.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::image_normalize::image_normalize;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// The definition: `(pixel - mean) / std` inside an image, 0 beside it.
fn naive(h: usize, w: usize, pixels: &[u8], sizes: &[f32]) -> Vec<f64> {
    let one = |i: usize| {
        let (c, x, y, b) = (i % 3, i / 3 % w, i / 3 / w % h, i / 3 / w / h);
        let inside = (y as f32) < sizes[4 * b] && (x as f32) < sizes[4 * b + 1];
        if inside { (f64::from(pixels[i]) - f64::from(MEAN[c])) / f64::from(STD[c]) } else { 0.0 }
    };
    (0..pixels.len()).map(one).collect()
}

/// B, H, W, then image height and width of each image.
const CASES: &[Case] = &[
    case("empty", &[0, 8, 8]),                          // no image
    case("no_pixels", &[1, 4, 0, 4, 0]),                // a batch without columns
    case("one", &[1, 1, 1, 1, 1]),                      // one pixel
    case("all_padding", &[2, 5, 7, 0, 0, 5, 7]),        // an image of size 0: zeros
    case("padded", &[3, 9, 21, 9, 21, 4, 13, 7, 1]), // images of different sizes in one batch, rows that fill no vector
    case("too_large", &[1, 3, 5, 30, 50]),           // a size beyond the batch is cut
    case("vectors", &[3, 6, 20, 6, 20, 5, 17, 1, 3]), // rows that end inside a vector, images that fill vectors
    case("square", &[2, 448, 448, 448, 448, 448, 299]), // the paper's pre-training square
];

/// Batch of the case: pixels and sizes.
fn images(case: &Case) -> ([usize; 3], Vec<u8>, Vec<f32>) {
    let [b, h, w] = case.dims[..3].try_into().expect("three sizes");
    let pixels = integers(1, b * h * w * 3, 0, 256).iter().map(|&v| v as u8).collect();
    let sizes = case.dims[3..].chunks(2).flat_map(|s| [s[0] as f32, s[1] as f32, h as f32, w as f32]).collect();
    ([b, h, w], pixels, sizes)
}

fn run(device: &Device, case: &Case, dtype: DType) -> Result<Vec<Tensor>> {
    let ([b, h, w], pixels, sizes) = images(case);
    let pixels = Tensor::from_slice(device, &[b, h, w, 3], &pixels)?;
    let sizes = Tensor::from_slice(device, &[b, 4], &sizes)?;
    let y = image_normalize(&mut Tape::new(device), &pixels, &sizes, MEAN, STD, dtype)?;
    assert!(!y.needs_grad());
    Ok(vec![y.value().clone()])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let ([_, h, w], pixels, sizes) = images(case);
        let want = naive(h, w, &pixels, &sizes);
        // The result is rounded once. Where a GPU rounds differently from the CPU, it gives the neighbouring number.
        let got = everywhere_within(f64::from(f32::EPSILON), 0.0, |dev| run(dev, case, DType::F32));
        assert_close(case.name, &got[0].f32s(), &want, 1e-6, 1e-6);
    }
}

#[test]
fn in_16_bits() {
    for case in CASES {
        in_halves(1.0, |dev, halves| run(dev, case, halves.tensor(dev, &[0], &[]).dtype()));
    }
}

#[test]
fn as_mmcv() {
    let file = OpFixture::open("pipeline");
    let shape = file.shape("img");
    let mut pixels = file.u8("img");
    pixels.chunks_exact_mut(3).for_each(|p| p.swap(0, 2)); // stored as B, G, R
    let y = everywhere_within(f64::from(f32::EPSILON), 0.0, |dev| {
        let image = Tensor::from_slice(dev, &[1, shape[0], shape[1], 3], &pixels)?;
        let sizes = tensor(dev, &[1, 4], &[shape[0] as f32, shape[1] as f32, 64.0, 64.0]);
        let y = image_normalize(&mut Tape::inference(dev), &image, &sizes, MEAN, STD, DType::F32)?;
        Ok(vec![y.value().clone()])
    });
    let want = file.f32("normalize");
    let off = y[0].f32s().iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(off, 0, "pixels that are not mmcv's to the bit");
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let image = |c| Tensor::zeros(&dev, &[1, 2, 2, c], DType::U8).unwrap();
    let sizes = |b| Tensor::zeros(&dev, &[b, 4], DType::F32).unwrap();
    let mut refused = |c, b, std, dtype| image_normalize(&mut tape, &image(c), &sizes(b), MEAN, std, dtype).is_err();
    assert!(!refused(3, 1, STD, DType::F32));
    assert!(refused(4, 1, STD, DType::F32));
    assert!(refused(3, 2, STD, DType::F32));
    assert!(refused(3, 1, [1.0, 0.0, 1.0], DType::F32));
    assert!(!refused(3, 1, STD, DType::F16) && refused(3, 1, STD, DType::I32));
}

#[test]
fn sizes_that_are_no_numbers_of_pixels() {
    let want = |h: usize, w: usize| (0..12).map(move |i| i / 6 < h && i / 3 % 2 < w).collect::<Vec<_>>();
    for (h, w, inside) in [(f32::NAN, -1.0, want(0, 0)), (2.0, f32::NAN, want(0, 0)), (0.5, 1.9, want(1, 1))] {
        let y = everywhere(|dev| {
            let (image, sizes) = (tensor(dev, &[1, 2, 2, 3], &[9_u8; 12]), tensor(dev, &[1, 4], &[h, w, 2.0, 2.0]));
            Ok(vec![image_normalize(&mut Tape::new(dev), &image, &sizes, MEAN, STD, DType::F32)?.value().clone()])
        });
        assert_eq!(y[0].f32s().iter().map(|&v| v != 0.0).collect::<Vec<_>>(), inside, "{h} x {w}");
    }
}
