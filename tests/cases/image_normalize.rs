use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::image_normalize::image_normalize;
use upres::tape::Tape;
use upres::tensor::{DType, Tensor};

/// B, H, W, then image height and width of each image.
const CASES: &[Case] = &[
    case("empty", &[0, 8, 8]),                          // no image
    case("no_pixels", &[1, 4, 0, 4, 0]),                // a batch without columns
    case("one", &[1, 1, 1, 1, 1]),                      // one pixel
    case("all_padding", &[2, 5, 7, 0, 0, 5, 7]),        // an image of size 0: zeros
    case("padded", &[3, 9, 21, 9, 21, 4, 13, 7, 1]), // images of different sizes in one batch, rows that fill no vector
    case("too_large", &[1, 3, 5, 30, 50]),           // a size beyond the batch is cut
    case("square", &[2, 448, 448, 448, 448, 448, 299]), // the paper's pre-training square
];

const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const STD: [f32; 3] = [58.395, 57.12, 57.375];

/// Batch of the case: pixels and sizes.
fn images(case: &Case) -> ([usize; 3], Vec<u8>, Vec<f32>) {
    let [b, h, w] = case.dims[..3].try_into().expect("three sizes");
    let pixels = integers(1, b * h * w * 3, 0, 256).iter().map(|&v| v as u8).collect();
    let sizes = case.dims[3..].chunks(2).flat_map(|s| [s[0] as f32, s[1] as f32, h as f32, w as f32]).collect();
    ([b, h, w], pixels, sizes)
}

fn run(device: &Device, case: &Case) -> Result<Vec<Tensor>> {
    let ([b, h, w], pixels, sizes) = images(case);
    let pixels = Tensor::from_slice(device, &[b, h, w, 3], &pixels)?;
    let sizes = Tensor::from_slice(device, &[b, 4], &sizes)?;
    let y = image_normalize(&mut Tape::new(device), &pixels, &sizes, MEAN, STD)?;
    assert!(!y.needs_grad());
    Ok(vec![y.value().clone()])
}

#[test]
fn equals_the_definition() {
    for case in CASES {
        let ([_, h, w], pixels, sizes) = images(case);
        let want: Vec<f64> = (0..pixels.len())
            .map(|i| {
                let (c, x, y, b) = (i % 3, i / 3 % w, i / 3 / w % h, i / 3 / w / h);
                let inside = (y as f32) < sizes[4 * b] && (x as f32) < sizes[4 * b + 1];
                if inside { (f64::from(pixels[i]) - f64::from(MEAN[c])) / f64::from(STD[c]) } else { 0.0 }
            })
            .collect();
        let got = everywhere(|dev| run(dev, case));
        assert_close(case.name, &got[0].f32s(), &want, 1e-6, 1e-6);
    }
}

#[test]
fn as_mmcv() {
    let file = OpFixture::open("pipeline");
    let shape = file.shape("img");
    let mut pixels = file.u8("img");
    pixels.chunks_exact_mut(3).for_each(|p| p.swap(0, 2)); // stored as B, G, R
    let dev = Device::cpu();
    let image = Tensor::from_slice(&dev, &[1, shape[0], shape[1], 3], &pixels).unwrap();
    let sizes = [shape[0] as f32, shape[1] as f32, 64.0, 64.0];
    let sizes = Tensor::from_slice(&dev, &[1, 4], &sizes).unwrap();
    let y = image_normalize(&mut Tape::inference(&dev), &image, &sizes, MEAN, STD).unwrap();
    let want = file.f32("normalize");
    let off = y.value().f32s().iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(off, 0, "pixels that are not mmcv's to the bit");
}

#[test]
fn refuses() {
    let dev = Device::cpu();
    let mut tape = Tape::new(&dev);
    let image = |c| Tensor::zeros(&dev, &[1, 2, 2, c], DType::U8).unwrap();
    let sizes = |b| Tensor::zeros(&dev, &[b, 4], DType::F32).unwrap();
    assert!(image_normalize(&mut tape, &image(4), &sizes(1), MEAN, STD).is_err());
    assert!(image_normalize(&mut tape, &image(3), &sizes(2), MEAN, STD).is_err());
    assert!(image_normalize(&mut tape, &image(3), &sizes(1), MEAN, [1.0, 0.0, 1.0]).is_err());
    let sizes = Tensor::from_slice(&dev, &[1, 4], &[f32::NAN, -1.0, 2.0, 2.0]).unwrap();
    let y = image_normalize(&mut tape, &image(3), &sizes, MEAN, STD).unwrap();
    assert!(y.value().f32s().iter().all(|&v| v == 0.0), "a size that is no number is outside");
}
