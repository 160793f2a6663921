//! Decoding and resizing compared with OpenCV, and the errors of bad image files.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use upres::data::decode::{decode_bytes, decode_file, image_size};
use upres::data::resize::{Scratch, Window, resize_window};
use upres::data::{Geometry, Image, Pipeline};

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder)
}

/// Largest difference of two bytes.
fn difference(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn every_kind_of_file_decodes_as_opencv_does() {
    let dir = fixtures("images");
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert!(expected.len() >= 24);
    let mut failures = Vec::new();
    for (name, want) in expected.iter() {
        let got = decode_file(dir.join(name)).unwrap();
        let shape = [got.height as usize, got.width as usize, 3];
        if shape != want.shape() {
            failures.push(format!("{name}: shape {shape:?}, want {:?}", want.shape()));
            continue;
        }
        assert_eq!(image_size(dir.join(name)).unwrap(), (got.width, got.height), "{name}: size by header");
        // PNG is exact; JPEG decoders differ in the last bits of the transform, of chroma interpolation and of the
        // CMYK conversion.
        let max = if name.ends_with(".png") { 0 } else { 3 };
        let d = difference(&got.data, want.data());
        if d > max {
            failures.push(format!("{name}: largest difference {d}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn resizing_is_opencv_s_to_the_bit() {
    let bytes = std::fs::read(fixtures("data").join("resize.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let source = file.tensor("img").unwrap();
    let image = Image { width: 53, height: 37, data: source.data().to_vec() };
    for (name, (w, h), stride) in
        [("rescale.40x30", (40, 28), 1), ("rescale.448x448", (448, 313), 29), ("rescale.1333x800", (1146, 800), 173)]
    {
        let mut out = vec![0; w * h * 3];
        let (w, h) = (w as u32, h as u32);
        let window = Window { resized: (w, h), at: (0, 0), size: (w, h), flip_x: false, flip_y: false };
        resize_window(&image, &window, &mut out, w as usize, &mut Scratch::default());
        let got: Vec<u8> = out.iter().step_by(stride).copied().collect();
        assert_eq!(difference(&got, file.tensor(name).unwrap().data()), 0, "{name}");
    }
}

#[test]
fn sizes_are_mmcv_s() {
    use upres::data::pipeline::Draws;
    // imrescale: f = min(long / max(h, w), short / min(h, w)), new = int(dim * f + 0.5).
    for ((w, h), (long, short), want) in [
        ((53, 37), (1333, 800), (1146, 800)),
        ((37, 53), (1333, 800), (800, 1146)),
        ((640, 480), (1333, 800), (1067, 800)),
        ((640, 427), (1333, 800), (1199, 800)),
        ((2000, 500), (1333, 800), (1333, 333)),
        ((640, 480), (320, 240), (320, 240)),
    ] {
        let pipeline = Pipeline::test(Geometry::finetune(long, short));
        let shape = upres::data::Shape::square(1600);
        let placement = pipeline.place((w, h), shape, &mut Draws::new(0, 0, 0, 0));
        assert_eq!(placement.window.resized, want, "{w}×{h}");
        let up = |v: u32| v.next_multiple_of(32) as f32;
        assert_eq!(placement.sizes, [want.1 as f32, want.0 as f32, up(want.1), up(want.0)]);
    }
}

#[test]
fn windows_and_mirrors_are_parts_of_the_whole() {
    let (sw, sh) = (31u32, 22u32);
    let data: Vec<u8> = (0..sw * sh * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let image = Image { width: sw, height: sh, data };
    for resized in [(31, 22), (62, 44), (17, 9), (90, 64)] {
        let whole = Window { resized, at: (0, 0), size: resized, flip_x: false, flip_y: false };
        let (rw, rh) = (resized.0 as usize, resized.1 as usize);
        let mut full = vec![0; rw * rh * 3];
        let mut scratch = Scratch::default();
        resize_window(&image, &whole, &mut full, rw, &mut scratch);
        let (at, size) = ((3, 2), (resized.0 - 7, resized.1 - 4));
        for (flip_x, flip_y) in [(false, false), (true, false), (false, true), (true, true)] {
            let stride = size.0 as usize + 5;
            let mut out = vec![7; stride * size.1 as usize * 3];
            resize_window(&image, &Window { resized, at, size, flip_x, flip_y }, &mut out, stride, &mut scratch);
            for y in 0..size.1 as usize {
                for x in 0..stride {
                    let got = &out[(y * stride + x) * 3..][..3];
                    if x >= size.0 as usize {
                        assert_eq!(got, [7; 3], "outside the window");
                        continue;
                    }
                    let sx = if flip_x { size.0 as usize - 1 - x } else { x } + at.0 as usize;
                    let sy = if flip_y { size.1 as usize - 1 - y } else { y } + at.1 as usize;
                    assert_eq!(got, &full[(sy * rw + sx) * 3..][..3], "{resized:?} {flip_x} {flip_y} at {x},{y}");
                }
            }
        }
    }
}

#[test]
fn every_truncation_is_an_error_and_never_a_panic() {
    for name in ["rgb_420.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg", "rgba.png", "palette.png"] {
        let bytes = std::fs::read(fixtures("images").join(name)).unwrap();
        assert!(decode_bytes(&bytes).is_ok());
        // The last bytes of a PNG are its end chunk and a checksum, which no decoder reads.
        let tail = if name.ends_with(".png") { 20 } else { 0 };
        for n in 0..bytes.len() - tail {
            assert!(decode_bytes(&bytes[..n]).is_err(), "{name} cut to {n} of {} bytes", bytes.len());
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    for name in ["rgb_420.jpg", "progressive.jpg", "ycck.jpg", "orientation_6.jpg", "rgb_16bit.png"] {
        let bytes = std::fs::read(fixtures("images").join(name)).unwrap();
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1 << (i % 8);
            if let Ok(image) = decode_bytes(&bad) {
                assert_eq!(image.data.len(), image.width as usize * image.height as usize * 3);
            }
        }
    }
}

#[test]
fn other_formats_and_missing_files_are_named() {
    let error = |bytes: &[u8]| decode_bytes(bytes).unwrap_err();
    assert!(error(b"").contains("empty"));
    assert!(error(b"GIF89a......").contains("GIF"));
    assert!(error(b"RIFF1234WEBPVP8 ").contains("WebP"));
    assert!(error(b"<html>not found</html>").contains("neither JPEG nor PNG"));
    let missing = decode_file("/nowhere/a.jpg").unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/a.jpg: ") && missing.contains("not found"), "{missing}");
    let folder = decode_file(fixtures("images")).unwrap_err().to_string();
    assert!(folder.contains("cannot be read"), "{folder}");
}
