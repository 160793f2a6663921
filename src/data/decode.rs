//! Decodes JPEG and PNG files to 8-bit RGB like OpenCV's `imread`: the EXIF orientation is applied, grey and palette
//! images are expanded, CMYK is converted, alpha is dropped, and 16-bit samples are cut to the upper 8 bits. Unlike in
//! `imread`, a truncated or corrupt file is an error and not a picture that is partly grey.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::{Error, Result};

/// The longest side that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// An 8-bit RGB picture, rows without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[H,W,3]`.
    pub data: Vec<u8>,
}

/// Reads and decodes a file, with its EXIF orientation applied.
pub fn decode_file(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let bytes = read(path)?;
    decode_bytes(&bytes).map_err(|message| Error::data(path, message))
}

/// Decodes the bytes of a file. The error is a sentence without the file's name.
pub fn decode_bytes(bytes: &[u8]) -> Result<Image, String> {
    // Image decoders have panicked on corrupt files before, and one bad file must not end a training run.
    catch_unwind(AssertUnwindSafe(|| match kind(bytes)? {
        Kind::Jpeg => decode_jpeg(bytes),
        Kind::Png => decode_png(bytes),
    }))
    .unwrap_or_else(|_| Err("corrupt image (the decoder gave up): copy or convert it again".into()))
}

/// Width and height that [`decode_file`] would give, from the file's header alone.
pub fn image_size(path: impl AsRef<Path>) -> Result<(u32, u32)> {
    let path = path.as_ref();
    let bytes = read(path)?;
    let size = catch_unwind(AssertUnwindSafe(|| match kind(&bytes)? {
        Kind::Jpeg => {
            let mut decoder =
                JpegDecoder::new_with_options(ZCursor::new(&bytes[..]), jpeg_options().set_strict_mode(false));
            decoder.decode_headers().map_err(corrupt)?;
            let info = decoder.info().ok_or("corrupt image: no header")?;
            let orientation = decoder.exif().map_or(1, |e| orientation(e));
            Ok(turned((u32::from(info.width), u32::from(info.height)), orientation))
        }
        Kind::Png => {
            let mut decoder = PngDecoder::with_limits(Cursor::new(&bytes), limits()).map_err(corrupt)?;
            let orientation = decoder.exif_metadata().ok().flatten().map_or(1, |e| orientation(&e));
            Ok(turned(decoder.dimensions(), orientation))
        }
    }));
    size.unwrap_or_else(|_| Err("corrupt image: no header".to_string())).map_err(|m| Error::data(path, m))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::data(path, "image file not found: check the image folder and `file_name`")
        }
        _ => Error::data(path, format!("image file cannot be read: {e}")),
    })
}

enum Kind {
    Jpeg,
    Png,
}

/// Recognises the format by the first bytes; the file's name does not matter.
fn kind(bytes: &[u8]) -> Result<Kind, String> {
    let other = |name: &str| Err(format!("a {name} file: convert it to JPEG or PNG"));
    match bytes {
        [] => Err("the image file is empty: copy it again".into()),
        [0xFF, 0xD8, ..] => Ok(Kind::Jpeg),
        [0x89, b'P', b'N', b'G', ..] => Ok(Kind::Png),
        [b'G', b'I', b'F', ..] => other("GIF"),
        [b'B', b'M', ..] => other("BMP"),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => other("TIFF"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => other("WebP"),
        _ => Err("neither JPEG nor PNG, or corrupt from the start: copy or convert it again".into()),
    }
}

/// The text for an error of a decoder.
fn corrupt(e: impl std::fmt::Display) -> String {
    let e = e.to_string();
    if e.contains("limit") {
        return format!("larger than {MAX_SIDE} pixels on a side, or than 4 GiB: cut it into tiles ({e})");
    }
    format!("corrupt or truncated image ({e}): copy or convert it again")
}

fn jpeg_options() -> DecoderOptions {
    DecoderOptions::new_fast()
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_strict_mode(true)
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(4 << 30);
    limits
}

/// Whether a JPEG file has its end marker where it belongs. Decoders do not notice a cut within the last row of blocks.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // In entropy-coded data, 0xFF stands only before 0 and restart markers; between segments there is none.
        let Some(skip) = bytes.get(at..).and_then(|b| b.iter().position(|v| *v == 0xFF)) else { return false };
        at += skip + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xD9) => return true,
            Some(0 | 1 | 0xD0..=0xD8) => at += 1,
            Some(0xFF) => {}
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(length) => at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
}

fn decode_jpeg(bytes: &[u8]) -> Result<Image, String> {
    if !jpeg_ends(bytes) {
        return Err(corrupt("no end marker"));
    }
    let run = |options| {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        let data = decoder.decode();
        (decoder, data)
    };
    // Strict mode, because otherwise the missing part of a truncated file becomes grey. It also refuses padding between
    // header segments, which is harmless and which some cameras write.
    let (mut decoder, mut data) = run(jpeg_options());
    if data.as_ref().is_err_and(|e| e.to_string().contains("Extra bytes between headers")) {
        (decoder, data) = run(jpeg_options().set_strict_mode(false));
    }
    let data = data.map_err(corrupt)?;
    let info = decoder.info().ok_or("corrupt image: no header")?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    if data.len() != width as usize * height as usize * 3 {
        return Err("JPEG of an unknown colour space: convert it to RGB".into());
    }
    let orientation = decoder.exif().map_or(1, |e| orientation(e));
    Ok(orient(Image { width, height, data }, orientation))
}

fn decode_png(bytes: &[u8]) -> Result<Image, String> {
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), limits()).map_err(corrupt)?;
    let (width, height) = decoder.dimensions();
    let orientation = decoder.exif_metadata().ok().flatten().map_or(1, |e| orientation(&e));
    let colour = decoder.color_type();
    let mut raw = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut raw).map_err(corrupt)?;
    let data = match colour {
        ColorType::Rgb8 => raw,
        ColorType::Rgba8 => pick(&raw, 4, [0, 1, 2]),
        ColorType::L8 => pick(&raw, 1, [0, 0, 0]),
        ColorType::La8 => pick(&raw, 2, [0, 0, 0]),
        // 16-bit samples have the machine's byte order; take the upper byte of each.
        ColorType::L16 => pick(&raw, 2, [HIGH; 3]),
        ColorType::La16 => pick(&raw, 4, [HIGH; 3]),
        ColorType::Rgb16 => pick(&raw, 6, [HIGH, 2 + HIGH, 4 + HIGH]),
        ColorType::Rgba16 => pick(&raw, 8, [HIGH, 2 + HIGH, 4 + HIGH]),
        other => return Err(format!("PNG with {other:?} pixels: convert it to 8-bit RGB")),
    };
    Ok(orient(Image { width, height, data }, orientation))
}

/// Index of the upper byte in a 16-bit sample.
const HIGH: usize = if cfg!(target_endian = "little") { 1 } else { 0 };

/// Makes RGB of pixels of `step` bytes, from the bytes at `at`.
fn pick(raw: &[u8], step: usize, at: [usize; 3]) -> Vec<u8> {
    raw.chunks_exact(step).flat_map(|p| [p[at[0]], p[at[1]], p[at[2]]]).collect()
}

/// The orientation (1 to 8) in an EXIF block; 1 if it has none or an invalid one.
fn orientation(exif: &[u8]) -> u32 {
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let block = exif::Reader::new().read_raw(exif.to_vec()).ok();
    let field = block.as_ref().and_then(|b| b.get_field(exif::Tag::Orientation, exif::In::PRIMARY));
    field.and_then(|f| f.value.get_uint(0)).filter(|v| (1..=8).contains(v)).unwrap_or(1)
}

/// Width and height after [`orient`].
fn turned((w, h): (u32, u32), orientation: u32) -> (u32, u32) {
    if orientation >= 5 { (h, w) } else { (w, h) }
}

/// Turns the stored picture upright (EXIF 2.32, tag 0x0112).
fn orient(image: Image, orientation: u32) -> Image {
    if orientation == 1 {
        return image;
    }
    let (w, h) = (image.width as usize, image.height as usize);
    let (width, height) = turned((image.width, image.height), orientation);
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..height as usize {
        for x in 0..width as usize {
            let (sx, sy) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            let at = (sy * w + sx) * 3;
            data.extend_from_slice(&image.data[at..at + 3]);
        }
    }
    Image { width, height, data }
}
