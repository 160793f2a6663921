//! Draws boxes, class names, scores and masks on RGB pictures, and puts several pictures on a sheet. Used by
//! `dataset draw`, `detect` and the report. Everything is clipped to the picture; a box that is not finite is left out.
//!
//! Main function: [`draw_objects`]. Read next: `draw_set`, which writes annotated copies of a data set's pictures.

use std::io::Read;
use std::path::Path;

use font8x8::UnicodeFonts;
use image::{Rgb, RgbImage};

use super::shapes::raster::coverage;
use crate::error::Result;
use crate::output::write_public;

/// Width and height in pixels of a character of the font.
const GLYPH: u32 = 8;

/// Colours of the first classes. Neighbours can be told apart, also with the common forms of colour blindness (after
/// Okabe and Ito 2008, and Green-Armytage 2010).
const PALETTE: [[u8; 3]; 12] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 200, 130],
    [240, 228, 66],
    [60, 110, 255],
    [235, 70, 70],
    [204, 121, 237],
    [153, 255, 51],
    [255, 120, 190],
    [0, 220, 220],
    [180, 130, 80],
    [255, 255, 255],
];

/// An object to draw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DrawnObject {
    /// x0, y0, x1, y1 in pixels of the picture.
    pub bbox: [f32; 4],
    /// Index of the class, which selects colour and name.
    pub class: usize,
    /// Confidence, printed after the name.
    pub score: Option<f32>,
    /// Mask, filled with [`DrawStyle::fill`]; empty if there is none.
    pub polygons: Vec<Vec<[f64; 2]>>,
    /// A remark printed after the name, for example `crowd`; empty for none.
    pub note: &'static str,
}

/// How [`draw_objects`] draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawStyle {
    /// Width of the lines in pixels.
    pub line: u32,
    /// Size of the characters in units of 8 pixels; 0 draws no labels.
    pub text: u32,
    /// Opacity of the masks, 0 to 1.
    pub fill: f32,
}

impl DrawStyle {
    /// A style that fits a picture of this size.
    pub fn for_size(width: u32, height: u32) -> Self {
        let side = width.min(height);
        DrawStyle { line: (side / 300).max(1), text: (side / 450).max(1), fill: 0.3 }
    }
}

/// Colour of a class. Beyond the palette, hues advance by the golden ratio, so that neighbours differ.
pub fn class_colour(class: usize) -> [u8; 3] {
    if let Some(&c) = PALETTE.get(class) {
        return c;
    }
    let hue = (class as f64 * 0.618_033_988_75).fract() * 6.0;
    let light = if class.is_multiple_of(2) { 255.0 } else { 190.0 };
    let f = hue.fract();
    let (p, q, t) = (light * 0.3, light * (1.0 - 0.7 * f), light * (0.3 + 0.7 * f));
    let rgb = match hue as u32 {
        0 => [light, t, p],
        1 => [q, light, p],
        2 => [p, light, t],
        3 => [p, q, light],
        4 => [t, p, light],
        _ => [light, p, q],
    };
    rgb.map(|v| v as u8)
}

/// Black or white, whichever is more legible on `background`.
fn ink(background: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = background.map(u32::from);
    if 299 * r + 587 * g + 114 * b > 128_000 { [0; 3] } else { [255; 3] }
}

/// Fills the part of `x0..x1`, `y0..y1` that is inside the picture.
pub fn fill_rect(image: &mut RgbImage, x0: i64, y0: i64, x1: i64, y1: i64, colour: [u8; 3]) {
    let (w, h) = (i64::from(image.width()), i64::from(image.height()));
    for y in y0.clamp(0, h)..y1.clamp(0, h) {
        for x in x0.clamp(0, w)..x1.clamp(0, w) {
            image.put_pixel(x as u32, y as u32, Rgb(colour));
        }
    }
}

/// Draws the outline of a box, `line` pixels wide, inside the box. A box that is not finite is left out.
pub fn draw_box(image: &mut RgbImage, bbox: [f32; 4], line: u32, colour: [u8; 3]) {
    let Some([x0, y0, x1, y1]) = pixel_box(bbox) else { return };
    let t = i64::from(line);
    fill_rect(image, x0, y0, x1, y0 + t, colour);
    fill_rect(image, x0, y1 - t, x1, y1, colour);
    fill_rect(image, x0, y0, x0 + t, y1, colour);
    fill_rect(image, x1 - t, y0, x1, y1, colour);
}

/// A box in whole pixels, at least one pixel wide and high. None if it is not finite.
fn pixel_box(bbox: [f32; 4]) -> Option<[i64; 4]> {
    if bbox.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let r = bbox.map(|v| f64::from(v).round() as i64);
    Some([r[0], r[1], r[2].max(r[0].saturating_add(1)), r[3].max(r[1].saturating_add(1))])
}

/// Width and height in pixels of a line of text.
pub fn text_size(text: &str, scale: u32) -> (u32, u32) {
    (text.chars().count() as u32 * GLYPH * scale, GLYPH * scale)
}

/// Draws a line of text whose top-left corner is (`x`, `y`). Characters without a glyph become question marks.
pub fn draw_text(image: &mut RgbImage, x: i64, y: i64, text: &str, scale: u32, colour: [u8; 3]) {
    for (i, c) in text.chars().enumerate() {
        let left = x + i as i64 * i64::from(GLYPH * scale);
        for (row, bits) in glyph(c).iter().enumerate() {
            for column in (0..GLYPH).filter(|k| bits >> k & 1 == 1) {
                let (px, py) = (left + i64::from(column * scale), y + row as i64 * i64::from(scale));
                fill_rect(image, px, py, px + i64::from(scale), py + i64::from(scale), colour);
            }
        }
    }
}

fn glyph(c: char) -> [u8; 8] {
    use font8x8::{BASIC_FONTS, GREEK_FONTS, HIRAGANA_FONTS, LATIN_FONTS};
    let known = |c| {
        BASIC_FONTS
            .get(c)
            .or_else(|| LATIN_FONTS.get(c))
            .or_else(|| GREEK_FONTS.get(c))
            .or_else(|| HIRAGANA_FONTS.get(c))
    };
    known(c).or_else(|| known('?')).unwrap_or([0; 8])
}

/// Draws text on a rectangle of `colour`: above (`x`, `y`) if there is room, else below, and inside the picture as far
/// as it fits.
fn draw_label(image: &mut RgbImage, x: i64, y: i64, text: &str, scale: u32, colour: [u8; 3]) {
    let (w, h) = text_size(text, scale);
    let (w, h) = (i64::from(w) + 2, i64::from(h) + 2);
    let left = x.min(i64::from(image.width()) - w).max(0);
    let top = if y - h >= 0 { y - h } else { y.max(0) }.min(i64::from(image.height()) - h).max(0);
    fill_rect(image, left, top, left + w, top + h, colour);
    draw_text(image, left + 1, top + 1, text, scale, ink(colour));
}

/// Mixes `colour` into the pixels inside a polygon.
pub fn fill_polygon(image: &mut RgbImage, polygon: &[[f64; 2]], colour: [u8; 3], opacity: f32) {
    if polygon.len() < 3 {
        return;
    }
    let c = coverage(polygon, image.width() as usize, image.height() as usize);
    for (x, y, share) in c.pixels() {
        let alpha = opacity.clamp(0.0, 1.0) * f32::from(share) / 256.0;
        let pixel = image.get_pixel_mut(x as u32, y as u32);
        for (p, v) in pixel.0.iter_mut().zip(colour) {
            *p = (f32::from(*p) + (f32::from(v) - f32::from(*p)) * alpha + 0.5) as u8;
        }
    }
}

/// Draws a straight line of one pixel's width, clipped to the picture.
pub fn draw_line(image: &mut RgbImage, from: [f64; 2], to: [f64; 2], colour: [u8; 3]) {
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let d = [to[0] - from[0], to[1] - from[1]];
    // Clips to the picture (Liang and Barsky 1984), so that ends far outside cost nothing.
    let (mut t0, mut t1) = (0.0f64, 1.0f64);
    for (p, q) in [(-d[0], from[0]), (d[0], w - from[0]), (-d[1], from[1]), (d[1], h - from[1])] {
        if p == 0.0 && q < 0.0 {
            return;
        } else if p < 0.0 {
            t0 = t0.max(q / p);
        } else if p > 0.0 {
            t1 = t1.min(q / p);
        }
    }
    // Two points per pixel, so that rounding at the far end of a long line skips no pixel.
    let steps = (2.0 * d[0].abs().max(d[1].abs()) * (t1 - t0)).ceil();
    if !(t0 <= t1 && d.iter().all(|v| v.is_finite())) {
        return;
    }
    let at = |t: f64| [from[0] + t * d[0], from[1] + t * d[1]];
    let (a, b) = (at(t0), at(t1));
    for i in 0..=steps as u64 {
        let u = i as f64 / steps.max(1.0);
        let (x, y) = ((a[0] + u * (b[0] - a[0])).floor() as i64, (a[1] + u * (b[1] - a[1])).floor() as i64);
        fill_rect(image, x, y, x + 1, y + 1, colour);
    }
}

/// Draws objects with their class names and scores. The highest score is drawn last, so that it is on top.
pub fn draw_objects(image: &mut RgbImage, objects: &[DrawnObject], names: &[String], style: DrawStyle) {
    let mut order: Vec<&DrawnObject> = objects.iter().collect();
    order.sort_by(|a, b| a.score.unwrap_or(1.0).total_cmp(&b.score.unwrap_or(1.0)));
    for o in &order {
        let colour = class_colour(o.class);
        for polygon in &o.polygons {
            fill_polygon(image, polygon, colour, style.fill);
            for (i, &p) in polygon.iter().enumerate() {
                draw_line(image, p, polygon[(i + 1) % polygon.len()], colour);
            }
        }
    }
    for o in &order {
        draw_box(image, o.bbox, style.line, class_colour(o.class));
    }
    for o in order.iter().filter(|_| style.text > 0) {
        let Some([x0, y0, ..]) = pixel_box(o.bbox) else { continue };
        let name = names.get(o.class).cloned().unwrap_or_else(|| format!("class {}", o.class));
        let mut text = match o.score {
            Some(score) => format!("{name} {score:.2}"),
            None => name,
        };
        if !o.note.is_empty() {
            text = format!("{text} ({})", o.note);
        }
        draw_label(image, x0, y0, &text, style.text, class_colour(o.class));
    }
}

/// Enlarges a picture `factor` times by repeating pixels, and scales its objects with it.
pub fn enlarge(image: &RgbImage, objects: &[DrawnObject], factor: u32) -> (RgbImage, Vec<DrawnObject>) {
    let big = RgbImage::from_fn(image.width() * factor, image.height() * factor, |x, y| {
        *image.get_pixel(x / factor, y / factor)
    });
    let k = f64::from(factor);
    let objects = objects
        .iter()
        .map(|o| DrawnObject {
            bbox: o.bbox.map(|v| v * factor as f32),
            polygons: o.polygons.iter().map(|p| p.iter().map(|c| c.map(|v| v * k)).collect()).collect(),
            ..o.clone()
        })
        .collect();
    (big, objects)
}

/// The factor by which a small picture is enlarged before drawing, so that labels do not cover it.
pub fn enlargement(width: u32, height: u32) -> u32 {
    (480 / width.max(height).max(1)).clamp(1, 4)
}

/// A copy of a picture with its objects drawn. Small pictures are enlarged.
pub fn annotated(image: &RgbImage, objects: &[DrawnObject], names: &[String]) -> RgbImage {
    let factor = enlargement(image.width(), image.height());
    let (mut big, objects) = enlarge(image, objects, factor);
    draw_objects(&mut big, &objects, names, DrawStyle::for_size(image.width() * factor, image.height() * factor));
    big
}

/// Puts pictures with captions on dark grey, in a grid of `columns`. Each cell is as large as the largest picture.
pub fn contact_sheet(cells: &[(RgbImage, String)], columns: usize) -> RgbImage {
    const GAP: u32 = 6;
    let columns = columns.clamp(1, cells.len().max(1)) as u32;
    let rows = (cells.len() as u32).div_ceil(columns);
    let w = cells.iter().map(|c| c.0.width()).max().unwrap_or(0);
    let h = cells.iter().map(|c| c.0.height()).max().unwrap_or(0);
    let caption = if cells.iter().all(|c| c.1.is_empty()) { 0 } else { GLYPH + 4 };
    let (cell_w, cell_h) = (w + GAP, h + caption + GAP);
    let mut sheet = RgbImage::from_pixel(columns * cell_w + GAP, rows * cell_h + GAP, Rgb([40, 40, 40]));
    for (i, (picture, text)) in cells.iter().enumerate() {
        let (x, y) = (GAP + i as u32 % columns * cell_w, GAP + i as u32 / columns * cell_h);
        let fits: String = text.chars().take((w / GLYPH) as usize).collect();
        draw_text(&mut sheet, i64::from(x), i64::from(y), &fits, 1, [220; 3]);
        image::imageops::replace(&mut sheet, picture, i64::from(x), i64::from(y + caption));
    }
    sheet
}

/// Reduces a picture so that no side is longer than `longest`, and returns the factor too. Small pictures stay as they
/// are.
pub fn reduced(image: &RgbImage, longest: u32) -> (RgbImage, f64) {
    let (w, h) = image.dimensions();
    let factor = f64::from(longest) / f64::from(w.max(h).max(1));
    if factor >= 1.0 {
        return (image.clone(), 1.0);
    }
    let side = |v: u32| ((f64::from(v) * factor).round() as u32).max(1);
    (image::imageops::resize(image, side(w), side(h), image::imageops::FilterType::Triangle), factor)
}

/// The bytes of a PNG file.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    super::shapes::encode_png(image.as_raw(), image.width() as usize, image.height() as usize)
}

/// The text chunk (`Software`, `upres`) that [`write_png`] puts after the header of its files.
const DRAWN: &[u8] = b"\0\0\0\x0etEXtSoftware\0upres\x74\xac\xd6\xfb";

/// Length in bytes of a PNG file's signature and of its first chunk, the header.
const PNG_HEADER: usize = 8 + 25;

/// Writes a PNG file that [`is_drawn`] recognises. The file appears at once, never half written.
pub fn write_png(path: &Path, image: &RgbImage) -> Result<()> {
    let mut bytes = encode_png(image)?;
    bytes.splice(PNG_HEADER..PNG_HEADER, DRAWN.iter().copied());
    write_public(path, &bytes)
}

/// Whether a file was made by [`write_png`]. Such files may be overwritten, others may not.
pub fn is_drawn(path: &Path) -> bool {
    let mut start = Vec::new();
    let length = (PNG_HEADER + DRAWN.len()) as u64;
    let read = std::fs::File::open(path).and_then(|file| file.take(length).read_to_end(&mut start));
    read.is_ok() && start.get(PNG_HEADER..) == Some(DRAWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank(w: u32, h: u32) -> RgbImage {
        RgbImage::new(w, h)
    }

    #[test]
    fn drawings_are_known_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        assert!(!is_drawn(&path));
        write_png(&path, &blank(3, 2)).unwrap();
        assert!(is_drawn(&path));
        assert_eq!(image::open(&path).unwrap().to_rgb8(), blank(3, 2));
        let (chunk, sum) = DRAWN[4..].split_at(DRAWN.len() - 8);
        let bit = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        let crc = !chunk.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit));
        assert_eq!(crc.to_be_bytes(), sum);
        std::fs::write(&path, encode_png(&blank(3, 2)).unwrap()).unwrap();
        assert!(!is_drawn(&path), "a picture, but no drawing");
    }

    fn lit(image: &RgbImage) -> usize {
        image.pixels().filter(|p| p.0 != [0; 3]).count()
    }

    fn object(bbox: [f32; 4], class: usize) -> DrawnObject {
        DrawnObject { bbox, class, ..DrawnObject::default() }
    }

    #[test]
    fn a_box_is_its_outline_and_is_clipped() {
        let mut i = blank(20, 20);
        draw_box(&mut i, [2.0, 3.0, 12.0, 9.0], 1, [255; 3]);
        assert_eq!(lit(&i), 2 * 10 + 2 * 4);
        assert_eq!(i.get_pixel(2, 3).0, [255; 3]);
        assert_eq!(i.get_pixel(11, 8).0, [255; 3]);
        assert_eq!(i.get_pixel(12, 9).0, [0; 3]);
        let mut i = blank(20, 20);
        draw_box(&mut i, [-5.0, -5.0, 100.0, 10.0], 2, [255; 3]);
        assert_eq!(lit(&i), 20 * 2);
        for wild in [[f32::NAN, 0.0, 5.0, 5.0], [f32::NEG_INFINITY, 0.0, 1.0, 1.0]] {
            let mut i = blank(20, 20);
            draw_box(&mut i, wild, 1, [255; 3]);
            assert_eq!(lit(&i), 0);
        }
        draw_box(&mut i, [-1e30, -1e30, 1e30, 1e30], 1, [255; 3]);
    }

    #[test]
    fn text_is_the_font_and_unknown_characters_are_question_marks() {
        let mut i = blank(30, 10);
        draw_text(&mut i, 1, 1, "I", 1, [255; 3]);
        let bits: u32 = font8x8::BASIC_FONTS.get('I').unwrap().iter().map(|b| b.count_ones()).sum();
        assert_eq!(lit(&i), bits as usize);
        let draw = |t: &str| {
            let mut i = blank(30, 10);
            draw_text(&mut i, 0, 0, t, 1, [255; 3]);
            i
        };
        assert_eq!(draw("\u{1F600}"), draw("?"));
        assert_ne!(draw("é"), draw("?"));
        let mut edge = blank(30, 10);
        draw_text(&mut edge, -4, -4, "WWWWWWWWW", 2, [255; 3]); // partly outside: no panic
        assert!(lit(&edge) > 0);
    }

    #[test]
    fn labels_stay_inside_the_picture() {
        let names = vec!["crescent".to_string()];
        for bbox in [[0.0, 0.0, 5.0, 5.0], [95.0, 0.0, 99.0, 99.0], [40.0, 95.0, 60.0, 99.0]] {
            let mut with = blank(100, 100);
            let mut style = DrawStyle::for_size(100, 100);
            draw_objects(&mut with, &[object(bbox, 0)], &names, style);
            let mut without = blank(100, 100);
            style.text = 0;
            draw_objects(&mut without, &[object(bbox, 0)], &names, style);
            assert!(lit(&with) > lit(&without) + 300, "{bbox:?}");
        }
        draw_objects(&mut blank(4, 3), &[object([0.0, 0.0, 4.0, 3.0], 7)], &[], DrawStyle::for_size(4, 3));
        draw_objects(&mut blank(0, 0), &[object([0.0, 0.0, 4.0, 3.0], 7)], &[], DrawStyle::for_size(0, 0));
    }

    #[test]
    fn lines_are_clipped_even_from_far_away() {
        let mut i = blank(10, 10);
        draw_line(&mut i, [-1e9, 4.5], [1e9, 4.5], [255; 3]);
        assert_eq!(lit(&i), 10);
        assert!((0..10).all(|x| i.get_pixel(x, 4).0 == [255; 3]));
        let mut i = blank(10, 10);
        draw_line(&mut i, [0.5, 0.5], [9.5, 9.5], [255; 3]);
        assert!((0..10).all(|k| i.get_pixel(k, k).0 == [255; 3]));
        let mut i = blank(10, 10);
        for end in [[f64::NAN, 1.0], [f64::INFINITY, 1.0], [20.0, 11.0]] {
            draw_line(&mut i, [11.0, 11.0], end, [255; 3]);
        }
        assert_eq!(lit(&i), 0);
    }

    #[test]
    fn masks_mix_by_their_opacity() {
        let mut i = RgbImage::from_pixel(10, 10, Rgb([100; 3]));
        fill_polygon(&mut i, &[[2.0, 2.0], [6.0, 2.0], [6.0, 6.0], [2.0, 6.0]], [200, 100, 0], 0.5);
        assert_eq!(i.get_pixel(3, 3).0, [150, 100, 50]);
        assert_eq!(i.get_pixel(7, 7).0, [100; 3]);
        fill_polygon(&mut i, &[[0.0, 0.0]], [0; 3], 1.0);
    }

    #[test]
    fn the_surest_detection_is_drawn_last() {
        let mut i = blank(60, 60);
        let mut a = object([10.0, 20.0, 40.0, 50.0], 0);
        let mut b = object([10.0, 20.0, 40.0, 50.0], 1);
        (a.score, b.score) = (Some(0.9), Some(0.3));
        let style = DrawStyle { line: 1, text: 0, fill: 0.0 };
        draw_objects(&mut i, &[a, b], &[], style);
        assert_eq!(i.get_pixel(10, 30).0, class_colour(0));
    }

    #[test]
    fn colours_of_the_first_forty_classes_differ() {
        for a in 0..40 {
            for b in 0..a {
                let (x, y) = (class_colour(a), class_colour(b));
                let d: i32 = x.iter().zip(y).map(|(&p, q)| (i32::from(p) - i32::from(q)).abs()).sum();
                assert!(d > 12, "{a} {x:?} and {b} {y:?}");
            }
        }
    }

    #[test]
    fn sheets_hold_every_cell() {
        let cell = |v| (RgbImage::from_pixel(8, 6, Rgb([v; 3])), "c".to_string());
        let s = contact_sheet(&[cell(101), cell(102), cell(103)], 2);
        for v in [101, 102, 103] {
            assert_eq!(s.pixels().filter(|p| p.0 == [v; 3]).count(), 48);
        }
        assert!(contact_sheet(&[], 3).width() > 0);
        let back = image::load_from_memory(&encode_png(&s).unwrap()).unwrap().to_rgb8();
        assert_eq!(back, s);
    }
}
