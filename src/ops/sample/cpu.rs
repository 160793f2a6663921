//! CPU kernels of sampling: one task an image.

use rayon::prelude::*;

use super::{SampleMode, Sampler};
use crate::philox::Stream;

pub(super) fn sample(
    idx: &mut [i32],
    gt: &mut [i32],
    counts: &mut [i32],
    ws: &mut [i32],
    assigned: &[i32],
    n: usize,
    s: &Sampler,
    key: &[i32],
) {
    let ws: &mut [u64] = bytemuck::cast_slice_mut(ws);
    if s.num == 0 {
        counts.fill(0);
        return;
    }
    // Chunks of max(n, 1): with no candidates the workspace is empty, but each image still gets its padding.
    let mut spaces: Vec<&mut [u64]> = ws.chunks_mut(n.max(1)).collect();
    spaces.resize_with(counts.len() / 2, Default::default);
    idx.par_chunks_mut(s.num)
        .zip(gt.par_chunks_mut(s.num))
        .zip(counts.par_chunks_mut(2))
        .zip(spaces)
        .enumerate()
        .for_each(|(image, (((idx, gt), counts), ws))| {
            let assigned = &assigned[image * n..][..n];
            let stream = match s.mode {
                SampleMode::Strided => None,
                SampleMode::Random(purpose) => Some(Stream::of_key(key, image as u32, purpose)),
            };
            idx.fill(-1);
            gt.fill(-1);
            let quota = (s.num as f64 * s.pos_fraction) as usize;
            let pos = choose(idx, quota, assigned, |a| a > 0, stream, ws);
            let neg = choose(&mut idx[pos..], s.num - pos, assigned, |a| a == 0, stream, ws);
            for (g, &i) in gt.iter_mut().zip(&idx[..pos]) {
                *g = assigned[i as usize] - 1;
            }
            (counts[0], counts[1]) = (pos as i32, neg as i32);
        });
}

/// Writes at most `num` candidates in ascending order; their number comes back. A candidate's number is the high word
/// of its sort key, so that the smallest numbers win and, of equal ones, the first candidate.
fn choose(
    out: &mut [i32],
    num: usize,
    assigned: &[i32],
    wanted: impl Fn(i32) -> bool,
    stream: Option<Stream>,
    ws: &mut [u64],
) -> usize {
    let mut len = 0;
    let (mut block, mut block_at) = ([0; 4], u32::MAX);
    for (i, _) in assigned.iter().enumerate().filter(|&(_, &a)| wanted(a)) {
        let i = i as u32;
        let high = stream.map_or(0, |s| {
            if i / 4 != block_at {
                (block, block_at) = (s.block(i / 4), i / 4);
            }
            block[(i % 4) as usize]
        });
        ws[len] = u64::from(high) << 32 | u64::from(i);
        len += 1;
    }
    let ws = &mut ws[..len];
    if len <= num {
        out.iter_mut().zip(&*ws).for_each(|(o, &k)| *o = k as u32 as i32);
        return len;
    }
    if num == 0 {
        return 0;
    }
    match stream {
        None => {
            for (k, o) in out[..num].iter_mut().enumerate() {
                *o = ws[k * len / num] as u32 as i32;
            }
        }
        Some(_) => {
            ws.select_nth_unstable(num - 1);
            out.iter_mut().zip(&ws[..num]).for_each(|(o, &k)| *o = k as u32 as i32);
            out[..num].sort_unstable();
        }
    }
    num
}
