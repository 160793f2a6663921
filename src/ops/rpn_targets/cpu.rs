//! CPU loops of rpn_targets.

pub(super) fn forward(target: &mut [i32], label: &mut [i32], gt: &[i32], idx: &[i32]) {
    for (((target, label), &gt), &i) in target.iter_mut().zip(label).zip(gt).zip(idx) {
        (*target, *label) = match (i >= 0, gt >= 0) {
            (true, true) => (1, 0),
            (true, false) => (0, -1),
            (false, _) => (-1, -1),
        };
    }
}
