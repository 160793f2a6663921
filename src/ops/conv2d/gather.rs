//! Windows of an NHWC map as rows of a matrix (im2col), built a few rows at a time.

use crate::cpu::simd;

/// A map `[N,H,W,C]` seen through windows of `kh x kw` pixels: row elements are ordered `[kh, kw, C]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Height of the map.
    pub h: usize,
    /// Width of the map.
    pub w: usize,
    /// Channels of the map.
    pub c: usize,
    /// Rows of the window.
    pub kh: usize,
    /// Columns of the window.
    pub kw: usize,
}

/// Where a window lies: image, and its top left pixel (may be outside: those pixels are 0).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub image: usize,
    pub h0: isize,
    pub w0: isize,
}

impl Window {
    /// Elements of a row.
    pub fn len(&self) -> usize {
        self.kh * self.kw * self.c
    }

    /// Elements `k0 .. k0 + n` of the window at `at`, if they lie side by side in the map.
    #[inline]
    pub fn slice<'a>(&self, map: &'a [f32], at: Place, k0: usize, n: usize) -> Option<&'a [f32]> {
        let line = self.kw * self.c;
        let (i, first) = (k0 / line, k0 % line);
        let h = at.h0 + i as isize;
        let inside = at.w0 >= 0 && at.w0 as usize + self.kw <= self.w && h >= 0 && (h as usize) < self.h;
        if !inside || first + n > line {
            return None;
        }
        let from = ((at.image * self.h + h as usize) * self.w + at.w0 as usize) * self.c + first;
        Some(&map[from..from + n])
    }

    /// Writes elements `k0 .. k0 + dst.len()` of the window at `at`.
    #[inline]
    pub fn copy_row(&self, dst: &mut [f32], map: &[f32], at: Place, k0: usize) {
        let line = self.kw * self.c; // one row of the window: contiguous in the map
        let k1 = k0 + dst.len();
        let inside =
            at.w0 >= 0 && at.w0 as usize + self.kw <= self.w && at.h0 >= 0 && at.h0 as usize + self.kh <= self.h;
        if inside && dst.len() == self.len() {
            let from = ((at.image * self.h + at.h0 as usize) * self.w + at.w0 as usize) * self.c;
            for (i, part) in dst.chunks_exact_mut(line).enumerate() {
                simd::copy(part, &map[from + i * self.w * self.c..][..line]);
            }
            return;
        }
        let inside_lo = (-at.w0).clamp(0, self.kw as isize) as usize * self.c;
        let inside_hi = (self.w as isize - at.w0).clamp(0, self.kw as isize) as usize * self.c;
        let mut k = k0;
        let mut i = k0 / line;
        while k < k1 {
            let start = i * line;
            let end = (start + line).min(k1);
            let part = &mut dst[k - k0..end - k0];
            let h = at.h0 + i as isize;
            if h < 0 || h >= self.h as isize || inside_lo >= inside_hi {
                simd::zero(part);
            } else {
                let a = (start + inside_lo).clamp(k, end);
                let b = (start + inside_hi).clamp(a, end);
                let pixel = ((at.image * self.h + h as usize) * self.w) as isize + at.w0;
                let from = (pixel * self.c as isize + (a - start) as isize) as usize;
                simd::zero(&mut part[..a - k]);
                if b > a {
                    simd::copy(&mut part[a - k..b - k], &map[from..from + (b - a)]);
                }
                simd::zero(&mut part[b - k..]);
            }
            k = end;
            i += 1;
        }
    }
}
