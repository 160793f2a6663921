//! CPU kernel of top_k: one task a segment and image. It keeps a list of those that may be among the best, thins it out
//! when it is full, and passes over blocks of scores that are no better than the last of the best so far: of millions
//! of scores it lists a few thousand.

use rayon::prelude::*;

use crate::ops::common::order::{descending_key, index_of, score_of};

/// Scores that are passed over or looked at one by one.
const BLOCK: usize = 64;
/// Places of the list beyond twice `k`.
const ROOM: usize = 1024;

/// Keys of a segment's list.
pub(super) fn space(len: usize, k: usize) -> usize {
    len.min(2 * k + ROOM)
}

pub(super) fn forward(idx: &mut [i32], ws: &mut [i32], scores: &[f32], n: usize, segments: &[(usize, usize, usize)]) {
    let mut ws: &mut [u64] = bytemuck::cast_slice_mut(ws);
    let mut idx = idx;
    let mut tasks = Vec::new();
    for row in 0..scores.len().checked_div(n).unwrap_or(0) {
        for &(start, len, k) in segments {
            let (space, rest) = ws.split_at_mut(space(len, k));
            let (out, tail) = idx.split_at_mut(k);
            (ws, idx) = (rest, tail);
            tasks.push((out, space, &scores[row * n + start..][..len], start));
        }
    }
    idx.fill(-1); // rows without scores
    tasks.into_par_iter().for_each(|(out, space, scores, start)| segment(out, space, scores, start));
}

fn segment(out: &mut [i32], keys: &mut [u64], scores: &[f32], start: usize) {
    let k = out.len().min(scores.len());
    if k > 0 {
        let found = candidates(keys, scores, k);
        let keys = &mut keys[..found];
        if k < found {
            keys.select_nth_unstable(k - 1);
        }
        keys[..k].sort_unstable();
        for (o, &key) in out.iter_mut().zip(&keys[..k]) {
            *o = (start + index_of(key)) as i32;
        }
    }
    out[k..].fill(-1);
}

/// Writes to `keys` a list that contains the `k` smallest keys of all scores (`0 < k <= scores.len()`), and returns its
/// length.
fn candidates(keys: &mut [u64], scores: &[f32], k: usize) -> usize {
    let mut found = 0;
    // Score of the k-th best so far. Later scores that equal it rank after it. It is NaN at first, and no score is
    // at most NaN.
    let mut floor = f32::NAN;
    for (block, scores) in scores.chunks(BLOCK).enumerate() {
        if scores.iter().fold(true, |all, &s| all & (s <= floor)) {
            continue;
        }
        for (j, &score) in scores.iter().enumerate() {
            if score <= floor {
                continue;
            }
            if found == keys.len() {
                keys.select_nth_unstable(k - 1);
                found = k;
                floor = score_of(keys[k - 1]);
            }
            keys[found] = descending_key(score, block * BLOCK + j);
            found += 1;
        }
    }
    found
}
