//! CPU kernel of top_k: one task a segment and image.

use rayon::prelude::*;

use crate::ops::order::{descending_key, index_of};

pub(super) fn forward(idx: &mut [i32], ws: &mut [i32], scores: &[f32], n: usize, segments: &[(usize, usize, usize)]) {
    let mut ws: &mut [u64] = bytemuck::cast_slice_mut(ws);
    let mut idx = idx;
    let mut tasks = Vec::new();
    for row in 0..scores.len().checked_div(n).unwrap_or(0) {
        for &(start, len, k) in segments {
            let (space, rest) = ws.split_at_mut(len);
            let (out, tail) = idx.split_at_mut(k);
            (ws, idx) = (rest, tail);
            tasks.push((out, space, &scores[row * n + start..][..len], start));
        }
    }
    idx.fill(-1); // rows without scores
    tasks.into_par_iter().for_each(|(out, space, scores, start)| segment(out, space, scores, start));
}

fn segment(out: &mut [i32], keys: &mut [u64], scores: &[f32], start: usize) {
    for (i, (key, &score)) in keys.iter_mut().zip(scores).enumerate() {
        *key = descending_key(score, i);
    }
    let k = out.len().min(keys.len());
    if k > 0 && k < keys.len() {
        keys.select_nth_unstable(k - 1);
    }
    keys[..k].sort_unstable();
    for (o, &key) in out.iter_mut().zip(&keys[..k]) {
        *o = (start + index_of(key)) as i32;
    }
    out[k..].fill(-1);
}
