//! CPU kernel of image normalisation: one task per row of an image.

use rayon::prelude::*;

/// Whole pixels and whole vectors: the three channels' constants repeat inside.
const PERIOD: usize = 48;

pub(super) fn forward(y: &mut [f32], images: &[u8], sizes: &[f32], [h, w]: [usize; 2], mean: [f32; 3], std: [f32; 3]) {
    let row = 3 * w;
    if row == 0 || h == 0 {
        return;
    }
    let mean: [f32; PERIOD] = std::array::from_fn(|i| mean[i % 3]);
    let rstd: [f64; PERIOD] = std::array::from_fn(|i| 1.0 / f64::from(std[i % 3]));
    y.par_chunks_mut(row).zip(images.par_chunks(row)).enumerate().for_each(|(i, (y, x))| {
        let (image_h, image_w) = (sizes[i / h * 4], sizes[i / h * 4 + 1]);
        // Negative and NaN become 0.
        let inside = if ((i % h) as f32) < image_h { (image_w as usize).min(w) * 3 } else { 0 };
        let (y, padding) = y.split_at_mut(inside);
        padding.fill(0.0);
        for (y, x) in y.chunks_mut(PERIOD).zip(x.chunks(PERIOD)) {
            for (((y, &x), mean), rstd) in y.iter_mut().zip(x).zip(&mean).zip(&rstd) {
                *y = (f64::from(f32::from(x) - mean) * rstd) as f32;
            }
        }
    });
}
