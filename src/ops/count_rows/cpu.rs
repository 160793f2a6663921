//! CPU loops of count_rows.

pub(super) fn forward(out: &mut [i32], idx: &[i32], s: usize) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = idx[i * s..][..s].iter().map(|i| i32::from(*i >= 0)).sum();
    }
}
