//! CPU loops of anchors_valid.

use super::AnchorGrid;

pub(super) fn forward(out: &mut [u8], anchors: AnchorGrid<'_>, sizes: &[f32], n: usize, border: f32) {
    if n == 0 {
        return;
    }
    let boxes = anchors.boxes.f32s();
    for (out, size) in out.chunks_mut(n).zip(sizes.chunks(4)) {
        let (img_h, img_w, pad_h, pad_w) = (size[0], size[1], size[2], size[3]);
        let mut i = 0;
        for level in anchors.levels {
            let rows = ((pad_h / level.stride_px as f32).ceil() as usize).min(level.h);
            let cols = ((pad_w / level.stride_px as f32).ceil() as usize).min(level.w);
            for y in 0..level.h {
                for x in 0..level.w {
                    for _ in 0..anchors.per_cell {
                        let b = &boxes[i * 4..][..4];
                        let inside = border < 0.0
                            || (b[0] >= -border && b[1] >= -border && b[2] < img_w + border && b[3] < img_h + border);
                        out[i] = u8::from(y < rows && x < cols && inside);
                        i += 1;
                    }
                }
            }
        }
    }
}
