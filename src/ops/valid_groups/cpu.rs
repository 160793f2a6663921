//! CPU loops of valid_groups.

pub(super) fn forward(y: &mut [i32], boxes: &[f32], idx: &[i32], group_of: &[(usize, i32)]) {
    let groups = group_of.iter().flat_map(|&(len, group)| std::iter::repeat_n(group, len)).cycle();
    for (((y, b), &i), group) in y.iter_mut().zip(boxes.chunks_exact(4)).zip(idx).zip(groups) {
        let is_box = i >= 0 && b[2] - b[0] > 0.0 && b[3] - b[1] > 0.0;
        *y = if is_box { group } else { -1 };
    }
}
