//! Sixteen f32 lanes: one AVX-512 register, two AVX registers or a plain array, chosen when the crate is compiled.
//!
//! For the element-wise parts of the CPU ops (Winograd transforms, packing). Main type: [`F32x16`].

use std::ops::{Add, Mul, Sub};

/// Lanes of [`F32x16`].
pub const LANES: usize = 16;

#[cfg(all(target_arch = "x86_64", target_feature = "avx512f"))]
mod repr {
    use std::arch::x86_64::*;
    pub(super) type Repr = __m512;
    // SAFETY (all functions of this module): they use AVX-512F instructions, which the `cfg` of this module shows to be
    // present; the loads and stores take their length from the array or slice that they are given.
    #[inline(always)]
    pub(super) fn splat(x: f32) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    pub(super) fn load(s: &[f32; 16]) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(s.as_ptr()) }
    }
    #[inline(always)]
    pub(super) fn store(v: Repr, s: &mut [f32; 16]) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(s.as_mut_ptr(), v) }
    }
    #[inline(always)]
    pub(super) fn load_partial(s: &[f32]) -> Repr {
        // SAFETY: see above; the mask keeps the load inside the slice (at most 16 lanes).
        unsafe { _mm512_maskz_loadu_ps(mask(s.len()), s.as_ptr()) }
    }
    #[inline(always)]
    pub(super) fn store_partial(v: Repr, s: &mut [f32]) {
        // SAFETY: see above; the mask keeps the store inside the slice.
        unsafe { _mm512_mask_storeu_ps(s.as_mut_ptr(), mask(s.len()), v) }
    }
    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        if n >= 16 { !0 } else { (1u16 << n) - 1 }
    }
    #[inline(always)]
    pub(super) fn add(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    pub(super) fn sub(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    pub(super) fn mul(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    pub(super) fn mul_add(a: Repr, b: Repr, c: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    pub(super) fn max(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    pub(super) fn pow2(t: Repr) -> Repr {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(super::ONE_BITS)))
        }
    }
    #[inline(always)]
    pub(super) fn sum(v: Repr) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    pub(super) fn largest(v: Repr) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    /// Three rounds of pairwise interleaving: elements, pairs, quarters of registers.
    #[inline(always)]
    pub(super) fn transpose(r: [Repr; 16]) -> [Repr; 16] {
        let mut out = r;
        // SAFETY: see above.
        unsafe {
            let double = |v| _mm512_castps_pd(v);
            let single = |v| _mm512_castpd_ps(v);
            // q[g][c], quarter l: rows 4g .. 4g + 4 of column 4l + c.
            let mut q = [[r[0]; 4]; 4];
            for (g, q) in q.iter_mut().enumerate() {
                let (a, b) = (_mm512_unpacklo_ps(r[4 * g], r[4 * g + 1]), _mm512_unpackhi_ps(r[4 * g], r[4 * g + 1]));
                let (c, d) =
                    (_mm512_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]), _mm512_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]));
                q[0] = single(_mm512_unpacklo_pd(double(a), double(c)));
                q[1] = single(_mm512_unpackhi_pd(double(a), double(c)));
                q[2] = single(_mm512_unpacklo_pd(double(b), double(d)));
                q[3] = single(_mm512_unpackhi_pd(double(b), double(d)));
            }
            for c in 0..4 {
                let even = |a, b| _mm512_shuffle_f32x4::<0x88>(a, b);
                let odd = |a, b| _mm512_shuffle_f32x4::<0xdd>(a, b);
                let (a, b) = (even(q[0][c], q[1][c]), even(q[2][c], q[3][c]));
                let (d, e) = (odd(q[0][c], q[1][c]), odd(q[2][c], q[3][c]));
                out[c] = even(a, b);
                out[8 + c] = odd(a, b);
                out[4 + c] = even(d, e);
                out[12 + c] = odd(d, e);
            }
        }
        out
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma", not(target_feature = "avx512f")))]
mod repr {
    use std::arch::x86_64::*;
    pub(super) type Repr = [__m256; 2];
    // SAFETY (all functions of this module): they use AVX and FMA instructions, which the `cfg` of this module shows to
    // be present; the loads and stores take arrays of 16 floats.
    #[inline(always)]
    pub(super) fn splat(x: f32) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    pub(super) fn load(s: &[f32; 16]) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(s.as_ptr()), _mm256_loadu_ps(s.as_ptr().add(8))] }
    }
    #[inline(always)]
    pub(super) fn store(v: Repr, s: &mut [f32; 16]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(s.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(s.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    pub(super) fn load_partial(s: &[f32]) -> Repr {
        let mut t = [0f32; 16];
        let n = s.len().min(16);
        t[..n].copy_from_slice(&s[..n]);
        load(&t)
    }
    #[inline(always)]
    pub(super) fn store_partial(v: Repr, s: &mut [f32]) {
        let mut t = [0f32; 16];
        store(v, &mut t);
        let n = s.len().min(16);
        s[..n].copy_from_slice(&t[..n]);
    }
    #[inline(always)]
    pub(super) fn add(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    pub(super) fn sub(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    pub(super) fn mul(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    pub(super) fn mul_add(a: Repr, b: Repr, c: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    pub(super) fn max(a: Repr, b: Repr) -> Repr {
        // SAFETY: see above.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    pub(super) fn pow2(t: Repr) -> Repr {
        t.map(|t| {
            // SAFETY: see above; AVX2 is there too.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
                _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(super::ONE_BITS)))
            }
        })
    }
    #[inline(always)]
    pub(super) fn sum(v: Repr) -> f32 {
        super::fold_lanes(v, store, |a, b| a + b)
    }
    #[inline(always)]
    pub(super) fn largest(v: Repr) -> f32 {
        super::fold_lanes(v, store, |a, b| if a > b { a } else { b })
    }
    pub(super) fn transpose(r: [Repr; 16]) -> [Repr; 16] {
        super::transpose_by_element(r, store, load)
    }
}

#[cfg(not(all(
    target_arch = "x86_64",
    any(target_feature = "avx512f", all(target_feature = "avx2", target_feature = "fma"))
)))]
mod repr {
    pub(super) type Repr = [f32; 16];
    #[inline(always)]
    pub(super) fn splat(x: f32) -> Repr {
        [x; 16]
    }
    #[inline(always)]
    pub(super) fn load(s: &[f32; 16]) -> Repr {
        *s
    }
    #[inline(always)]
    pub(super) fn store(v: Repr, s: &mut [f32; 16]) {
        *s = v;
    }
    #[inline(always)]
    pub(super) fn load_partial(s: &[f32]) -> Repr {
        let mut t = [0f32; 16];
        let n = s.len().min(16);
        t[..n].copy_from_slice(&s[..n]);
        t
    }
    #[inline(always)]
    pub(super) fn store_partial(v: Repr, s: &mut [f32]) {
        let n = s.len().min(16);
        s[..n].copy_from_slice(&v[..n]);
    }
    #[inline(always)]
    pub(super) fn add(a: Repr, b: Repr) -> Repr {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    pub(super) fn sub(a: Repr, b: Repr) -> Repr {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    pub(super) fn mul(a: Repr, b: Repr) -> Repr {
        std::array::from_fn(|i| a[i] * b[i])
    }
    // Not `f32::mul_add`: without an FMA unit that is a call to the maths library.
    #[inline(always)]
    pub(super) fn mul_add(a: Repr, b: Repr, c: Repr) -> Repr {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    pub(super) fn max(a: Repr, b: Repr) -> Repr {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    pub(super) fn pow2(t: Repr) -> Repr {
        t.map(|t| f32::from_bits((t.to_bits() << 23).wrapping_add(super::ONE_BITS as u32)))
    }
    #[inline(always)]
    pub(super) fn sum(v: Repr) -> f32 {
        super::fold_lanes(v, store, |a, b| a + b)
    }
    #[inline(always)]
    pub(super) fn largest(v: Repr) -> f32 {
        super::fold_lanes(v, store, |a, b| if a > b { a } else { b })
    }
    pub(super) fn transpose(r: [Repr; 16]) -> [Repr; 16] {
        super::transpose_by_element(r, store, load)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
fn transpose_by_element(
    r: [repr::Repr; 16],
    store: impl Fn(repr::Repr, &mut [f32; 16]),
    load: impl Fn(&[f32; 16]) -> repr::Repr,
) -> [repr::Repr; 16] {
    let mut t = [[0f32; 16]; 16];
    for (v, t) in r.into_iter().zip(t.iter_mut()) {
        store(v, t);
    }
    std::array::from_fn(|i| load(&std::array::from_fn(|j| t[j][i])))
}

/// All lanes by halves: 16, 8, 4, 2.
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
#[inline(always)]
fn fold_lanes(v: repr::Repr, store: impl Fn(repr::Repr, &mut [f32; 16]), f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut t = [0f32; 16];
    store(v, &mut t);
    let mut n = 16;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            t[i] = f(t[i], t[i + n]);
        }
    }
    t[0]
}

/// The bits of 1.0.
const ONE_BITS: i32 = 127 << 23;

/// Sixteen f32.
#[derive(Clone, Copy)]
pub struct F32x16(repr::Repr);

impl F32x16 {
    /// All lanes 0.
    #[inline(always)]
    pub fn zero() -> Self {
        Self::splat(0.0)
    }
    /// All lanes `x`.
    #[inline(always)]
    pub fn splat(x: f32) -> Self {
        F32x16(repr::splat(x))
    }
    /// The first 16 elements of `s`; panics if there are fewer.
    #[inline(always)]
    pub fn load(s: &[f32]) -> Self {
        F32x16(repr::load(s[..LANES].try_into().expect("16 elements")))
    }
    /// The first `min(16, len)` elements of `s`, the other lanes 0.
    #[inline(always)]
    pub fn load_partial(s: &[f32]) -> Self {
        F32x16(repr::load_partial(s))
    }
    /// Writes the 16 lanes to the start of `s`; panics if it is shorter.
    #[inline(always)]
    pub fn store(self, s: &mut [f32]) {
        repr::store(self.0, (&mut s[..LANES]).try_into().expect("16 elements"));
    }
    /// Writes the first `min(16, len)` lanes to `s`.
    #[inline(always)]
    pub fn store_partial(self, s: &mut [f32]) {
        repr::store_partial(self.0, s);
    }
    /// `self * b + c`, fused where the machine can.
    #[inline(always)]
    pub fn mul_add(self, b: Self, c: Self) -> Self {
        F32x16(repr::mul_add(self.0, b.0, c.0))
    }
    /// Lane j of result i is lane i of `rows[j]`.
    #[inline(always)]
    pub fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        repr::transpose(rows.map(|v| v.0)).map(F32x16)
    }
    /// Lane-wise `self` where it is larger, else `b`: a NaN of `b` stays, one of `self` does not.
    #[inline(always)]
    pub fn max(self, b: Self) -> Self {
        F32x16(repr::max(self.0, b.0))
    }
    /// The sum of the lanes, in an order that is the build's.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        repr::sum(self.0)
    }
    /// The largest lane, if none is NaN.
    #[inline(always)]
    pub fn largest(self) -> f32 {
        repr::largest(self.0)
    }
    /// `e^x` within 2 units in the last place for x of -87.3 to 88, and 0 from -87.7 down. NaN stays.
    ///
    /// `x = n ln 2 + r` with `|r| <= ln 2 / 2`: ln 2 in two parts, of which the first has 9 bits, so that its product with n is exact;
    /// `e^r` by the polynomial of Cephes.
    #[inline(always)]
    pub fn exp(self) -> Self {
        let s = Self::splat;
        let x = s(-88.0).max(self); // n = -127: a power of two without an exponent, 0
        // 1.5 * 2^23: the sum's last place is 1, its low bits are n.
        let magic = s(12_582_912.0);
        let t = x.mul_add(s(std::f32::consts::LOG2_E), magic);
        let n = t - magic;
        let r = n.mul_add(s(-355.0 / 512.0), x);
        let r = n.mul_add(s(2.121_944_4e-4), r);
        let p = s(1.987_569_1e-4).mul_add(r, s(1.398_199_9e-3));
        let p = p.mul_add(r, s(8.333_452e-3));
        let p = p.mul_add(r, s(4.166_579_6e-2));
        let p = p.mul_add(r, s(1.666_666_5e-1));
        let p = p.mul_add(r, s(0.5));
        let p = p.mul_add(r * r, r) + s(1.0);
        p * F32x16(repr::pow2(t.0))
    }
}

impl Add for F32x16 {
    type Output = Self;
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        F32x16(repr::add(self.0, b.0))
    }
}

impl Sub for F32x16 {
    type Output = Self;
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        F32x16(repr::sub(self.0, b.0))
    }
}

impl Mul for F32x16 {
    type Output = Self;
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        F32x16(repr::mul(self.0, b.0))
    }
}

/// `dst = src`: whole vectors, and one partial vector in place of the call that a short `copy_from_slice` becomes.
#[inline(always)]
pub fn copy(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len());
    let mut d = dst.chunks_exact_mut(LANES);
    let mut s = src.chunks_exact(LANES);
    for (d, s) in d.by_ref().zip(s.by_ref()) {
        F32x16::load(s).store(d);
    }
    let (d, s) = (d.into_remainder(), s.remainder());
    if !d.is_empty() {
        F32x16::load_partial(s).store_partial(d);
    }
}

/// Asks for the cache lines of `s`, to the second level: for rows that no hardware foresees, some microseconds ahead.
#[inline(always)]
pub fn prefetch(s: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in s.chunks(LANES) {
        // SAFETY: a hint, and an address inside `s`; SSE is part of the architecture.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = s;
}

/// `dst = 0` for short runs.
#[inline(always)]
pub fn zero(dst: &mut [f32]) {
    let mut d = dst.chunks_exact_mut(LANES);
    for d in d.by_ref() {
        F32x16::zero().store(d);
    }
    let d = d.into_remainder();
    if !d.is_empty() {
        F32x16::zero().store_partial(d);
    }
}

#[cfg(test)]
mod tests;
