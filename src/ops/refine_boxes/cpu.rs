//! CPU loops of refine_boxes.

pub(super) fn valid(y: &mut [i32], idx: &[i32], first: i32) {
    for (y, &i) in y.iter_mut().zip(idx) {
        *y = if i >= first { 1 } else { -1 };
    }
}
