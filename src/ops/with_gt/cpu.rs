//! CPU loops of with_gt.

use crate::ops::match_boxes::INVALID;

pub(super) fn forward(out: &mut [i32], assigned: &[i32], gt_count: &[i32], g: usize, p: usize) {
    for (i, &count) in gt_count.iter().enumerate() {
        let out = &mut out[i * (g + p)..][..g + p];
        for (j, o) in out[..g].iter_mut().enumerate() {
            *o = if (j as i32) < count { j as i32 + 1 } else { INVALID };
        }
        out[g..].copy_from_slice(&assigned[i * p..][..p]);
    }
}
