//! The GEMM micro-kernel: one tile of up to [`MR`] x [`NR`] outputs, held in registers over the whole sum.
//!
//! `C[rows(i), j] (+)= sum_k A[i*rs + k*cs] * B[k*ldb + j]`. The strides of A make packing optional: rows of a matrix
//! (`cs` = 1) and columns (`rs` = 1) are read where they are. AVX-512 and AVX2 kernels are chosen at run time, other
//! machines take a portable loop. Measured on Zen 4: 99 % of the peak, 117 GFLOP/s a core.

use super::view::MatMut;

/// Rows of a tile: 14 x 2 accumulators and 2 columns of B leave two of the 32 AVX-512 registers.
pub const MR: usize = 14;
/// Columns of a tile: two AVX-512 registers. Panels of B are this wide.
pub const NR: usize = 32;
/// The row length for a matrix of rows of `n` elements that is read many rows at a time: an odd number of cache lines, so
/// that the rows do not fall on the same cache sets.
pub fn spread(n: usize) -> usize {
    (n.div_ceil(16) | 1) * 16
}

/// The instruction set that the kernels use. Only [`Isa::detect`] makes one, so it is one that the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// The best one that this machine has.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Isa(Kind::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Isa(Kind::Avx2);
            }
        }
        Isa(Kind::Portable)
    }

    /// For reports; none if no kernel is written for the machine.
    pub fn name(self) -> Option<&'static str> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Some("AVX-512"),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Some("AVX2"),
            Kind::Portable => None,
        }
    }
}

/// What happens to a finished tile.
#[derive(Clone, Copy, Default)]
pub struct Finish<'a> {
    /// Add to what C holds instead of overwriting it.
    pub accumulate: bool,
    /// Added to every row (as long as the tile is wide).
    pub bias: Option<&'a [f32]>,
    /// `max(0, .)` after the bias; NaN stays.
    pub relu: bool,
}

/// The factors of a tile.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// A: element (i, k) is `a[i * rs + k * cs]`.
    pub a: &'a [f32],
    /// Distance in `a` from one row to the next.
    pub rs: usize,
    /// Distance in `a` from one k to the next.
    pub cs: usize,
    /// B: element (k, j) is `b[k * ldb + j]`. Rows are read in whole vectors of 16.
    pub b: &'a [f32],
    /// Distance in `b` from one k to the next.
    pub ldb: usize,
    /// Number of products summed.
    pub k: usize,
}

impl Factors<'_> {
    /// Whether A has `mr` rows and B the vectors of `n` columns; strides are the caller's, and a product that wraps must not
    /// look like one that fits. Not inlined: the loops around a tile are faster with less code in them.
    #[inline(never)]
    fn hold(&self, mr: usize, n: usize) -> bool {
        let Some(k) = self.k.checked_sub(1) else { return true };
        let a = || (mr - 1).checked_mul(self.rs)?.checked_add(k.checked_mul(self.cs)?);
        let b = || k.checked_mul(self.ldb)?.checked_add(n.next_multiple_of(16));
        a().is_some_and(|last| last < self.a.len()) && b().is_some_and(|end| end <= self.b.len())
    }
}

/// Computes the tile of rows `rows` (indices into `c`, at most [`MR`]) and columns `col0 .. col0 + n` (`n <=` [`NR`]).
#[inline]
pub fn tile(isa: Isa, f: Factors<'_>, c: &mut MatMut<'_>, rows: &[usize], col0: usize, n: usize, finish: Finish<'_>) {
    let mr = rows.len();
    if mr == 0 || n == 0 {
        return;
    }
    assert!(mr <= MR && n <= NR && n <= c.cols() && col0 <= c.cols() - n);
    assert!(f.hold(mr, n), "tile: A or B is too short");
    let mut offsets = [0usize; MR];
    for (o, &r) in offsets.iter_mut().zip(rows) {
        assert!(r < c.rows());
        *o = r * c.ld() + col0;
    }
    let bias = match finish.bias {
        Some(b) => {
            assert!(b.len() >= n);
            b.as_ptr()
        }
        None => std::ptr::null(),
    };
    let p = Raw {
        k: f.k,
        a: f.a.as_ptr(),
        rs: f.rs,
        cs: f.cs,
        b: f.b.as_ptr(),
        ldb: f.ldb,
        c: c.as_mut_ptr(),
        offsets: &offsets,
        n,
        accumulate: finish.accumulate,
        bias,
        relu: finish.relu,
    };
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::detect` saw AVX-512F; the asserts above keep all elements of A, B, C and the bias that Raw describes
        // inside their slices.
        Kind::Avx512 => unsafe { avx512::tile(mr, &p) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above, with AVX2 and FMA.
        Kind::Avx2 => unsafe { avx2::tile(mr, &p) },
        // SAFETY: the asserts above.
        Kind::Portable => unsafe { portable(mr, &p) },
    }
}

/// A checked call: see [`tile`].
struct Raw<'a> {
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    offsets: &'a [usize; MR],
    n: usize,
    accumulate: bool,
    bias: *const f32,
    relu: bool,
}

/// # Safety
/// `p` describes elements inside live slices, `c` exclusively borrowed (checked in [`tile`]).
unsafe fn portable(mr: usize, p: &Raw<'_>) {
    for i in 0..mr {
        let mut acc = [0f32; NR];
        // SAFETY: i < mr, k < p.k, j < p.n: inside the slices by this function's contract.
        unsafe {
            for k in 0..p.k {
                let a = *p.a.add(i * p.rs + k * p.cs);
                let b = std::slice::from_raw_parts(p.b.add(k * p.ldb), p.n);
                for (s, &b) in acc.iter_mut().zip(b) {
                    *s += a * b;
                }
            }
            for (j, &s) in acc[..p.n].iter().enumerate() {
                let c = p.c.add(p.offsets[i] + j);
                let mut v = if p.accumulate { *c + s } else { s };
                if !p.bias.is_null() {
                    v += *p.bias.add(j);
                }
                *c = if p.relu && v < 0.0 { 0.0 } else { v };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{MR, Raw};
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512F is present; `p` is valid (see [`super::tile`]) for `mr` rows, `1 <= mr <= MR`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn tile(mr: usize, p: &Raw<'_>) {
        macro_rules! dispatch {
            ($($m:literal)*) => {
                match (mr, p.n > 16) {
                    // SAFETY: this function's contract, with M = mr.
                    $(($m, false) => unsafe { kernel::<$m, 1>(p) }, ($m, true) => unsafe { kernel::<$m, 2>(p) },)*
                    _ => unreachable!("a tile has 1 to {MR} rows"),
                }
            };
        }
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }

    /// # Safety
    /// As [`tile`], with `M` rows and `NV` vectors a row.
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn kernel<const M: usize, const NV: usize>(p: &Raw<'_>) {
        let mut acc = [[_mm512_setzero_ps(); NV]; M];
        let (mut a, mut b) = (p.a, p.b);
        // The lines of C arrive while the sum is made.
        for o in &p.offsets[..M] {
            for j in 0..NV {
                _mm_prefetch::<_MM_HINT_ET0>(p.c.wrapping_add(o + 16 * j).cast());
            }
        }
        for _ in 0..p.k {
            // SAFETY: row k of B has NV whole vectors and A has element (i, k) for i < M (the caller's contract); the
            // pointers are only advanced, never read, past the last step (wrapping_add).
            unsafe {
                let mut bv = [_mm512_setzero_ps(); NV];
                for (j, v) in bv.iter_mut().enumerate() {
                    *v = _mm512_loadu_ps(b.add(16 * j));
                }
                for (i, row) in acc.iter_mut().enumerate() {
                    let av = _mm512_set1_ps(*a.add(i * p.rs));
                    for (s, &v) in row.iter_mut().zip(&bv) {
                        *s = _mm512_fmadd_ps(av, v, *s);
                    }
                }
            }
            a = a.wrapping_add(p.cs);
            b = b.wrapping_add(p.ldb);
        }
        let last = p.n - 16 * (NV - 1);
        let mask = |j: usize| if j + 1 < NV || last >= 16 { !0u16 } else { (1u16 << last) - 1 };
        for (j, m) in (0..NV).map(|j| (j, mask(j))) {
            for (i, row) in acc.iter_mut().enumerate() {
                // SAFETY: the mask keeps the last vector inside the n columns; offsets and bias are valid by contract.
                unsafe {
                    let c = p.c.add(p.offsets[i] + 16 * j);
                    let mut v = row[j];
                    if p.accumulate {
                        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, c));
                    }
                    if !p.bias.is_null() {
                        v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, p.bias.add(16 * j)));
                    }
                    if p.relu {
                        v = _mm512_max_ps(_mm512_setzero_ps(), v); // the second, if one is NaN
                    }
                    _mm512_mask_storeu_ps(c, m, v);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Raw;
    use std::arch::x86_64::*;

    /// Rows at a time: 6 x 2 accumulators of 8 lanes.
    const M: usize = 6;

    /// # Safety
    /// AVX2 and FMA are present; `p` is valid (see [`super::tile`]) for `mr` rows.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn tile(mr: usize, p: &Raw<'_>) {
        for i in (0..mr).step_by(M) {
            for j in (0..p.n).step_by(16) {
                // SAFETY: this function's contract; the rows and columns given are part of the tile.
                unsafe {
                    match (mr - i).min(M) {
                        1 => kernel::<1>(i, j, p),
                        2 => kernel::<2>(i, j, p),
                        3 => kernel::<3>(i, j, p),
                        4 => kernel::<4>(i, j, p),
                        5 => kernel::<5>(i, j, p),
                        _ => kernel::<6>(i, j, p),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`tile`], for rows `i0 .. i0 + R` and columns from `j0`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn kernel<const R: usize>(i0: usize, j0: usize, p: &Raw<'_>) {
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        let (mut a, mut b) = (p.a.wrapping_add(i0 * p.rs), p.b.wrapping_add(j0));
        for _ in 0..p.k {
            // SAFETY: B has 16 columns from j0 (rows are whole vectors of 16) and A has rows i0 .. i0 + R, by contract.
            unsafe {
                let bv = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, row) in acc.iter_mut().enumerate() {
                    let av = _mm256_set1_ps(*a.add(i * p.rs));
                    row[0] = _mm256_fmadd_ps(av, bv[0], row[0]);
                    row[1] = _mm256_fmadd_ps(av, bv[1], row[1]);
                }
            }
            a = a.wrapping_add(p.cs);
            b = b.wrapping_add(p.ldb);
        }
        let n = (p.n - j0).min(16);
        for (i, row) in acc.iter().enumerate() {
            let mut t = [0f32; 16];
            // SAFETY: t has 16 elements; offsets, bias and the n columns from j0 are valid by contract.
            unsafe {
                _mm256_storeu_ps(t.as_mut_ptr(), row[0]);
                _mm256_storeu_ps(t.as_mut_ptr().add(8), row[1]);
                let c = std::slice::from_raw_parts_mut(p.c.add(p.offsets[i0 + i] + j0), n);
                if p.accumulate {
                    t.iter_mut().zip(&*c).for_each(|(t, c)| *t += c);
                }
                if !p.bias.is_null() {
                    let bias = std::slice::from_raw_parts(p.bias.add(j0), n);
                    t.iter_mut().zip(bias).for_each(|(t, b)| *t += b);
                }
                if p.relu {
                    t.iter_mut().for_each(|t| *t = if *t < 0.0 { 0.0 } else { *t });
                }
                c.copy_from_slice(&t[..n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(isa: Isa, mr: usize, n: usize, k: usize, (rs, cs): (usize, usize), accumulate: bool, extra: bool) {
        let value = |i: usize| ((i * 37 + 11) % 29) as f32 - 14.0;
        let ldb = 40;
        let a: Vec<f32> = (0..mr * rs + k * cs).map(value).collect();
        let b: Vec<f32> = (0..k * ldb + NR).map(|i| value(i * 3 + 1)).collect();
        let bias: Vec<f32> = (0..n).map(|i| value(i + 5)).collect();
        let rows: Vec<usize> = (0..mr).map(|i| i * 2).collect();
        let (height, ld) = (2 * mr, n + 3);
        let before: Vec<f32> = (0..height * ld).map(|i| value(i + 2)).collect();
        let mut c = before.clone();
        let finish = Finish { accumulate, bias: extra.then_some(&bias[..]), relu: extra };
        let f = Factors { a: &a, rs, cs, b: &b, ldb, k };
        tile(isa, f, &mut MatMut::new(&mut c, height, ld, ld), &rows, 2, n, finish);
        let mut want = before.clone();
        for (i, r) in rows.iter().enumerate() {
            for j in 0..n {
                let mut s = if accumulate { before[r * ld + 2 + j] } else { 0.0 };
                for q in 0..k {
                    s += a[i * rs + q * cs] * b[q * ldb + j];
                }
                if extra {
                    s = (s + bias[j]).max(0.0);
                }
                want[r * ld + 2 + j] = s;
            }
        }
        assert_eq!(c, want, "{isa:?} {mr}x{n}x{k}"); // small integers: exact
    }

    /// All that this machine has.
    fn isas() -> Vec<Isa> {
        let mut isas = vec![Isa(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                isas.push(Isa(Kind::Avx2));
            }
            isas.push(Isa::detect());
        }
        isas
    }

    #[test]
    fn relu_lets_nan_through() {
        let nan = f32::NAN;
        let b: Vec<f32> = (0..NR).map(|j| [1.0, -1.0, nan][j % 3]).collect();
        for isa in isas() {
            for n in [1, 15, 16, 17, NR] {
                let (a, mut c) = ([2.0f32; MR], vec![0f32; MR * NR]);
                let f = Factors { a: &a, rs: 1, cs: 1, b: &b, ldb: NR, k: 1 };
                let finish = Finish { relu: true, ..Finish::default() };
                let rows: [usize; MR] = std::array::from_fn(|i| i);
                tile(isa, f, &mut MatMut::new(&mut c, MR, NR, NR), &rows, 0, n, finish);
                for (i, &v) in c.iter().enumerate().filter(|(i, _)| i % NR < n) {
                    let right = if i % NR % 3 == 2 { v.is_nan() } else { v == [2.0, 0.0][i % NR % 3] };
                    assert!(right, "{isa:?}: column {} of {n}: {v}", i % NR);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "A or B is too short")]
    fn a_stride_that_wraps_is_refused() {
        let (a, b, mut c) = ([1.0f32; 4], [1.0f32; NR], [0f32; 4 * NR]);
        let f = Factors { a: &a, rs: usize::MAX / 2 + 1, cs: 1, b: &b, ldb: NR, k: 1 };
        tile(Isa(Kind::Portable), f, &mut MatMut::new(&mut c, 4, NR, NR), &[0, 1, 2], 0, 16, Finish::default());
    }

    #[test]
    fn every_tile_size_and_isa_is_exact() {
        for isa in isas() {
            for mr in 1..=MR {
                for n in [1, 3, 15, 16, 17, 31, 32] {
                    for k in [0, 1, 7] {
                        check(isa, mr, n, k, (1, 20), mr % 2 == 0, n % 2 == 0);
                        check(isa, mr, n, k, (8, 1), mr % 3 == 0, k == 1);
                    }
                }
            }
        }
    }
}
