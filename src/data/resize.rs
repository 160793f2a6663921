//! Bilinear resizing that matches OpenCV's `INTER_LINEAR` on 8 bits exactly: 11-bit weights, horizontal pass first, no
//! anti-aliasing. Only the wanted window of the resized picture is computed, and mirrored if asked.

use super::decode::Image;

/// A window of a resized picture, and whether it is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Width and height of the whole resized picture.
    pub resized: (u32, u32),
    /// Left and top of the window in the resized picture.
    pub at: (u32, u32),
    /// Width and height of the window.
    pub size: (u32, u32),
    /// Whether to mirror left and right.
    pub flip_x: bool,
    /// Whether to mirror top and bottom.
    pub flip_y: bool,
}

/// One direction of a [`Window`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Pixels of the original picture.
    pub source: u32,
    /// Pixels of the resized picture.
    pub resized: u32,
    /// The window's first pixel in the resized picture.
    pub at: u32,
    /// Pixels of the window.
    pub size: u32,
    /// Whether the window is mirrored.
    pub flip: bool,
}

impl Window {
    /// The columns, for a picture of `source` columns.
    pub(super) fn columns(&self, source: u32) -> Axis {
        Axis { source, resized: self.resized.0, at: self.at.0, size: self.size.0, flip: self.flip_x }
    }

    /// The rows, for a picture of `source` rows.
    pub(super) fn rows(&self, source: u32) -> Axis {
        Axis { source, resized: self.resized.1, at: self.at.1, size: self.size.1, flip: self.flip_y }
    }
}

/// How OpenCV repeats the last pixel where a tap lies beyond the border.
#[derive(Clone, Copy, PartialEq)]
enum Border {
    /// Columns: the tap beyond has a weight of 0.
    WeightZero,
    /// Rows: the same row is weighed twice, which rounds differently.
    SamePixelTwice,
}

/// The source of an output column or row: two source pixels and their weights in 1/2048.
#[derive(Clone, Copy, Debug)]
struct Tap {
    at: [u32; 2],
    weight: [i32; 2],
}

/// Buffers that are reused from one picture to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    columns: Vec<Tap>,
    rows: Vec<Tap>,
    /// Two source rows, resized horizontally, in 1/128 (OpenCV drops 4 of the 11 bits here).
    lines: [Vec<i16>; 2],
}

/// Writes the taps of the window's outputs along one axis.
fn taps(out: &mut Vec<Tap>, axis: Axis, border: Border) {
    let scale = 1.0 / (f64::from(axis.resized) / f64::from(axis.source));
    let last = axis.source as i32 - 1;
    out.clear();
    out.extend((axis.at..axis.at + axis.size).map(|i| {
        let centre = ((f64::from(i) + 0.5) * scale - 0.5) as f32;
        let place = centre.floor() as i32;
        let beyond = border == Border::WeightZero && (place < 0 || place >= last);
        let part = if beyond { 0.0 } else { centre - centre.floor() };
        let weight = [1.0 - part, part].map(|w| (w * 2048.0).round_ties_even() as i32);
        Tap { at: [place, place + 1].map(|p| p.clamp(0, last) as u32), weight }
    }));
    if axis.flip {
        out.reverse();
    }
}

/// Writes the window of `image` to the top left of `out`, whose rows are `stride` pixels long.
pub fn resize_window(image: &Image, w: &Window, out: &mut [u8], stride: usize, scratch: &mut Scratch) {
    let (width, source_row) = (w.size.0 as usize, image.width as usize * 3);
    let lines = out.chunks_mut(stride * 3).take(w.size.1 as usize);
    if w.resized == (image.width, image.height) && !w.flip_x {
        for (y, line) in lines.enumerate() {
            let y = if w.flip_y { w.size.1 as usize - 1 - y } else { y };
            let from = (w.at.1 as usize + y) * source_row + w.at.0 as usize * 3;
            line[..width * 3].copy_from_slice(&image.data[from..from + width * 3]);
        }
        return;
    }
    taps(&mut scratch.columns, w.columns(image.width), Border::WeightZero);
    taps(&mut scratch.rows, w.rows(image.height), Border::SamePixelTwice);
    let mut held = [u32::MAX; 2];
    for b in &mut scratch.lines {
        b.resize(width * 3, 0);
    }
    for (row, line) in scratch.rows.iter().zip(lines) {
        // A source row that is still held for the output row above is kept; it may have to change sides.
        if held[1] == row.at[0] || held[0] == row.at[1] {
            held.swap(0, 1);
            scratch.lines.swap(0, 1);
        }
        let once = row.at[0] == row.at[1] || row.weight[1] == 0;
        for (side, held) in held.iter_mut().enumerate() {
            if *held != row.at[side] && !(side == 1 && once) {
                let from = row.at[side] as usize * source_row;
                horizontal(&mut scratch.lines[side], &image.data[from..from + source_row], &scratch.columns);
                *held = row.at[side];
            }
        }
        let second = &scratch.lines[usize::from(!once)];
        vertical(&mut line[..width * 3], &scratch.lines[0], second, row.weight);
    }
}

/// Resizes one row horizontally, three channels at a time in 21-bit fields of a u64 (255 × 2048 needs 19 bits).
fn horizontal(out: &mut [i16], row: &[u8], taps: &[Tap]) {
    let pixel = |at: u32| {
        let p = &row[at as usize * 3..at as usize * 3 + 3];
        u64::from(p[0]) | u64::from(p[1]) << 21 | u64::from(p[2]) << 42
    };
    for (o, t) in out.chunks_exact_mut(3).zip(taps) {
        let v = pixel(t.at[0]) * t.weight[0] as u64 + pixel(t.at[1]) * t.weight[1] as u64;
        for (c, o) in o.iter_mut().enumerate() {
            *o = ((v >> (21 * c + 4)) & 0xFFFF) as i16;
        }
    }
}

/// Weighs two horizontally resized rows.
fn vertical(out: &mut [u8], a: &[i16], b: &[i16], [wa, wb]: [i32; 2]) {
    for ((o, &a), &b) in out.iter_mut().zip(a).zip(b) {
        let v = ((wa * i32::from(a)) >> 16) + ((wb * i32::from(b)) >> 16);
        *o = ((v + 2) >> 2).clamp(0, 255) as u8;
    }
}
