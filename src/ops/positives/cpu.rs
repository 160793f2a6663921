//! CPU loops of positives.

pub(super) fn forward(out: &mut [i32], gt: &[i32], s: usize, first: usize, p: usize) {
    for (out, gt) in out.chunks_mut(p.max(1)).zip(gt.chunks(s.max(1))) {
        out.iter_mut()
            .zip(&gt[first..])
            .zip(first as i32..)
            .for_each(|((o, gt), column)| *o = if *gt >= 0 { column } else { -1 });
    }
}
