//! Non-maximum suppression on the CPU.
//!
//! An image's candidates are put together by group and each group is sorted once. Then each candidate, best first, is
//! compared with the boxes kept so far, which lie in five separate arrays (a vector of them a time) and stop at the
//! first that suppresses it. Groups and images are independent tasks.

use rayon::prelude::*;

use super::{Nms, SPLIT_FROM};
use crate::device::Device;
use crate::error::Result;
use crate::ops::common::order::{descending_key, index_of};
use crate::tensor::{DType, Tensor};

/// Boxes compared before looking whether one suppressed.
const BLOCK: usize = 32;
/// Below this many candidates a task is not split.
const SPLIT_MIN: usize = 256;

/// f32 of one image: five coordinates of the kept boxes.
fn kept_len(n: usize) -> usize {
    5 * n
}

/// i32 of one image: where groups begin, and how many of each are kept.
fn groups_len(groups: usize) -> usize {
    2 * groups + 1
}

/// Keys, kept boxes and groups of all images.
pub(super) fn workspace(device: &Device, b: usize, n: usize, p: &Nms) -> Result<Vec<Tensor>> {
    Ok(vec![
        Tensor::empty(device, &[b * n, 8], DType::U8)?,
        Tensor::empty(device, &[b * kept_len(n)], DType::F32)?,
        Tensor::empty(device, &[b * groups_len(p.groups)], DType::I32)?,
    ])
}

/// `keep [B,max_out]` from `boxes [B,N,4]`, `scores [B,N]`, `group [B,N]` or `[N]`.
pub(super) fn forward(
    keep: &mut Tensor,
    ws: &mut [Tensor],
    boxes: &[f32],
    scores: &[f32],
    group: &[i32],
    n: usize,
    p: &Nms,
) {
    let [keys, kept, groups] = ws else { unreachable!("nms: the workspace of the CPU") };
    let (keep, keys) = (keep.i32s_mut(), bytemuck::cast_slice_mut::<u8, u64>(keys.slice_mut()));
    if p.max_out == 0 {
        return;
    }
    if n == 0 {
        keep.fill(-1);
        return;
    }
    keep.par_chunks_mut(p.max_out)
        .zip(keys.par_chunks_mut(n))
        .zip(kept.f32s_mut().par_chunks_mut(kept_len(n)))
        .zip(groups.i32s_mut().par_chunks_mut(groups_len(p.groups)))
        .enumerate()
        .for_each(|(b, (((keep, keys), kept), groups))| {
            let group = if group.len() == n { group } else { &group[b * n..][..n] };
            let input = Image::new(&boxes[b * n * 4..][..n * 4], &scores[b * n..][..n], group, p);
            image(keep, keys, kept, groups, &input);
        });
}

/// The inputs of one image, shared by its tasks.
struct Image<'a> {
    boxes: &'a [f32],
    scores: &'a [f32],
    group: &'a [i32],
    p: &'a Nms,
    /// `g · shift` is added to the coordinates of group g. If it is 0, groups are kept apart without a shift.
    shift: f32,
    /// If false, shifted groups may touch, so all candidates are compared.
    separate: bool,
}

impl<'a> Image<'a> {
    fn new(boxes: &'a [f32], scores: &'a [f32], group: &'a [i32], p: &'a Nms) -> Self {
        let mut image = Self { boxes, scores, group, p, shift: 0.0, separate: true };
        if !p.offset {
            return image;
        }
        let (mut count, mut last, mut min, mut max, mut finite) = (0, 0, f32::INFINITY, f32::NEG_INFINITY, true);
        for (i, b) in boxes.chunks_exact(4).enumerate() {
            if let Some(g) = image.group_of(i) {
                count += 1;
                last = last.max(g);
                for &v in b {
                    min = min.min(v);
                    max = max.max(v);
                    finite &= v.is_finite();
                }
            }
        }
        image.shift = max + 1.0;
        // Shifted groups lie apart if coordinates are not negative and the rounding of the shift stays below the gap of
        // 1.
        let apart = finite && min >= 0.0 && last as f32 * image.shift < 8_388_608.0;
        image.separate = apart || last == 0 || count >= SPLIT_FROM;
        image
    }

    /// The group of box `i`, if it takes part.
    fn group_of(&self, i: usize) -> Option<usize> {
        usize::try_from(self.group[i]).ok().filter(|&g| g < self.p.groups)
    }

    fn get(&self, i: usize) -> [f32; 4] {
        let b: [f32; 4] = self.boxes[4 * i..4 * i + 4].try_into().expect("four numbers");
        if !self.p.offset {
            return b;
        }
        let shift = self.group[i] as f32 * self.shift;
        b.map(|v| v + shift)
    }
}

fn image(keep: &mut [i32], keys: &mut [u64], kept: &mut [f32], groups: &mut [i32], image: &Image<'_>) {
    let p = image.p;
    let n = image.group.len();
    let (starts, lens) = groups.split_at_mut(p.groups + 1);
    // Count, then place: starts[g] runs through group g and ends where g + 1 began.
    starts.fill(0);
    for g in (0..n).filter_map(|i| image.group_of(i)) {
        starts[g + 1] += 1;
    }
    lens.copy_from_slice(&starts[1..]);
    for g in 0..p.groups {
        starts[g + 1] += starts[g];
    }
    let total = starts[p.groups] as usize;
    for (i, g) in (0..n).filter_map(|i| Some((i, image.group_of(i)?))) {
        let at = &mut starts[g];
        keys[*at as usize] = descending_key(image.scores[i], i);
        *at += 1;
    }
    let mut kept = Kept::new(kept, n);
    if image.separate {
        solve(lens, &mut keys[..total], kept, image);
    } else {
        lens.fill(0);
        lens[0] = greedy(&mut keys[..total], &mut kept, image) as i32;
        starts.fill(0);
    }
    // The groups' kept keys move together and are sorted once more.
    let mut all = 0;
    for g in 0..p.groups {
        let from = if g == 0 { 0 } else { starts[g - 1] as usize };
        let len = lens[g] as usize;
        keys.copy_within(from..from + len, all);
        all += len;
    }
    keys[..all].sort_unstable();
    for (i, k) in keep.iter_mut().enumerate() {
        *k = if i < all { index_of(keys[i]) as i32 } else { -1 };
    }
}

/// Runs the groups of `lens`, whose keys follow one another; `lens` becomes the numbers kept.
fn solve(lens: &mut [i32], keys: &mut [u64], mut kept: Kept<'_>, image: &Image<'_>) {
    if lens.len() > 1 && keys.len() >= SPLIT_MIN {
        let (left, right) = lens.split_at_mut(lens.len() / 2);
        let at = left.iter().sum::<i32>() as usize;
        let (left_keys, right_keys) = keys.split_at_mut(at);
        let (left_kept, right_kept) = kept.split_at(at);
        rayon::join(|| solve(left, left_keys, left_kept, image), || solve(right, right_keys, right_kept, image));
        return;
    }
    let mut at = 0;
    for len in lens {
        let n = *len as usize;
        *len = greedy(&mut keys[at..at + n], &mut kept, image) as i32;
        at += n;
    }
}

/// Sorts the keys, keeps the boxes that no better one suppresses, moves their keys to the front; their number.
fn greedy(keys: &mut [u64], kept: &mut Kept<'_>, image: &Image<'_>) -> usize {
    keys.sort_unstable();
    let mut n = 0;
    for i in 0..keys.len() {
        let b = image.get(index_of(keys[i]));
        if !kept.suppress(n, b, image.p.iou_threshold) {
            kept.set(n, b);
            keys[n] = keys[i];
            n += 1;
            if n == image.p.max_out {
                break;
            }
        }
    }
    n
}

/// Boxes kept so far, by coordinate.
struct Kept<'a> {
    x0: &'a mut [f32],
    y0: &'a mut [f32],
    x1: &'a mut [f32],
    y1: &'a mut [f32],
    area: &'a mut [f32],
}

impl<'a> Kept<'a> {
    fn new(buffer: &'a mut [f32], n: usize) -> Self {
        let (x0, rest) = buffer.split_at_mut(n);
        let (y0, rest) = rest.split_at_mut(n);
        let (x1, rest) = rest.split_at_mut(n);
        let (y1, area) = rest.split_at_mut(n);
        Self { x0, y0, x1, y1, area }
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        let (x0, y0) = (self.x0.split_at_mut(at), self.y0.split_at_mut(at));
        let (x1, y1) = (self.x1.split_at_mut(at), self.y1.split_at_mut(at));
        let area = self.area.split_at_mut(at);
        (
            Self { x0: x0.0, y0: y0.0, x1: x1.0, y1: y1.0, area: area.0 },
            Self { x0: x0.1, y0: y0.1, x1: x1.1, y1: y1.1, area: area.1 },
        )
    }

    fn set(&mut self, i: usize, b: [f32; 4]) {
        (self.x0[i], self.y0[i], self.x1[i], self.y1[i], self.area[i]) = (b[0], b[1], b[2], b[3], area(b));
    }

    /// True if one of the first `n` has IoU > `threshold` with `b`.
    fn suppress(&self, n: usize, b: [f32; 4], threshold: f32) -> bool {
        let b_area = area(b);
        let mut from = 0;
        while from + BLOCK <= n {
            if self.block::<BLOCK>(from, b, b_area, threshold) {
                return true;
            }
            from += BLOCK;
        }
        (from..n).any(|i| self.block::<1>(i, b, b_area, threshold))
    }

    #[inline(always)]
    fn block<const N: usize>(&self, from: usize, b: [f32; 4], b_area: f32, threshold: f32) -> bool {
        let part = |v: &[f32]| -> [f32; N] { v[from..from + N].try_into().expect("a full block") };
        let (x0, y0, x1, y1, area) = (part(self.x0), part(self.y0), part(self.x1), part(self.y1), part(self.area));
        let mut inter = [0.0f32; N];
        let mut union = [0.0f32; N];
        let mut any = 0u32;
        for i in 0..N {
            // `if` and not `f32::max`: one instruction, and NaN is settled by the comparison of IoU below.
            let (left, top) = (if x0[i] > b[0] { x0[i] } else { b[0] }, if y0[i] > b[1] { y0[i] } else { b[1] });
            let (right, bottom) = (if x1[i] < b[2] { x1[i] } else { b[2] }, if y1[i] < b[3] { y1[i] } else { b[3] });
            let (w, h) = (right - left, bottom - top);
            inter[i] = (if w > 0.0 { w } else { 0.0 }) * (if h > 0.0 { h } else { 0.0 });
            union[i] = area[i] + b_area - inter[i];
            // A product instead of a quotient never misses: IoU > t rounded implies inter >= t · union rounded.
            any |= u32::from(inter[i] >= threshold * union[i]);
        }
        // The quotient decides, as in mmcv; 0 / 0 is NaN and suppresses nothing.
        any != 0 && (0..N).any(|i| inter[i] / union[i] > threshold)
    }
}

fn area(b: [f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}
