//! CPU loops of labels.

use crate::ops::box_encode::cpu::ground_truth;

pub(super) fn forward(y: &mut [i32], gt: &[i32], idx: &[i32], gt_labels: &[i32], s: usize, g: usize, background: i32) {
    for (r, ((y, &gt), &i)) in y.iter_mut().zip(gt).zip(idx).enumerate() {
        *y = match ground_truth(gt, g) {
            _ if i < 0 => -1,
            Some(k) => gt_labels[r / s * g + k],
            None => background,
        };
    }
}
