//! A safe front for the `gemm` crate: strided `C = alpha A B + beta C` for the shapes that no op has a better loop for.
//!
//! The crate packs into thread-local slabs and, for large right-hand sides, into a buffer that it allocates for the call;
//! the convolutions and linear layers therefore run on [`super::microkernel`] instead, which packs into their workspace.

use gemm::Parallelism;

/// A matrix in a slice: element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

impl Layout {
    /// Row-major, contiguous.
    pub fn row_major(rows: usize, cols: usize) -> Self {
        Layout { rows, cols, rs: cols, cs: 1 }
    }
    /// The same elements, transposed.
    pub fn t(self) -> Self {
        Layout { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs }
    }
    /// Elements that a slice needs to hold the matrix.
    pub fn span(&self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * self.rs + (self.cols - 1) * self.cs + 1 }
    }
}

/// `C = alpha A B + beta C`; with `beta == 0`, what C held is not read. Panics if a matrix does not fit into its slice, the
/// shapes do not agree, or two elements of C would share a place.
pub fn gemm(c: &mut [f32], lc: Layout, alpha: f32, a: &[f32], la: Layout, b: &[f32], lb: Layout, beta: f32) {
    assert!(la.rows == lc.rows && lb.cols == lc.cols && la.cols == lb.rows, "gemm: {la:?} x {lb:?} into {lc:?}");
    assert!(la.span() <= a.len() && lb.span() <= b.len() && lc.span() <= c.len(), "gemm: a matrix exceeds its slice");
    if lc.rows == 0 || lc.cols == 0 {
        return;
    }
    let distinct = (lc.cs > 0 || lc.cols == 1)
        && (lc.rs > 0 || lc.rows == 1)
        && (lc.rs > (lc.cols - 1) * lc.cs || lc.cs > (lc.rows - 1) * lc.rs);
    assert!(distinct, "gemm: elements of C overlap: {lc:?}");
    // SAFETY: the spans (checked above) keep every element of A, B and C inside its slice; C is borrowed exclusively and
    // its elements are distinct (checked above), so the threads of the call write disjoint places.
    unsafe {
        gemm::gemm(
            lc.rows,
            lc.cols,
            la.cols,
            c.as_mut_ptr(),
            lc.cs as isize,
            lc.rs as isize,
            beta != 0.0,
            a.as_ptr(),
            la.cs as isize,
            la.rs as isize,
            b.as_ptr(),
            lb.cs as isize,
            lb.rs as isize,
            beta,
            alpha,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_accumulating_product() {
        let (m, n, k) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| i as f32 - 4.0).collect(); // stored [k, m]
        let b: Vec<f32> = (0..k * n).map(|i| 2.0 - i as f32).collect();
        let mut c = vec![1f32; m * (n + 2)];
        let lc = Layout { rows: m, cols: n, rs: n + 2, cs: 1 };
        gemm(&mut c, lc, 2.0, &a, Layout::row_major(k, m).t(), &b, Layout::row_major(k, n), 3.0);
        for i in 0..m {
            for j in 0..n + 2 {
                let s: f32 = (0..k).map(|q| a[q * m + i] * b[(q * n + j).min(k * n - 1)]).sum();
                assert_eq!(c[i * (n + 2) + j], if j < n { 2.0 * s + 3.0 } else { 1.0 });
            }
        }
    }

    #[test]
    #[should_panic(expected = "exceeds its slice")]
    fn short_slices_are_refused() {
        let l = Layout::row_major(4, 4);
        gemm(&mut [0.0; 16], l, 1.0, &[0.0; 15], l, &[0.0; 16], l, 0.0);
    }
}
