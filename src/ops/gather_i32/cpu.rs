//! CPU loops of gather_i32.

pub(super) fn forward(y: &mut [i32], x: &[i32], idx: &[i32], n: usize, s: usize, missing: i32) {
    for (r, (y, &i)) in y.iter_mut().zip(idx).enumerate() {
        *y = usize::try_from(i).ok().filter(|&i| i < n).map_or(missing, |i| x[r / s * n + i]);
    }
}
