//! CPU kernels of the focal loss: exponential and logarithm as polynomials without branches, which the compiler turns
//! into vectors. A recipe's loss has millions of elements, and calls of the maths library would take most of the time
//! of the heads.

use rayon::prelude::*;

use super::Focal;

/// Elements of one parallel task: fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 16 * 1024;
/// Elements of a vector loop, and of a sum in f32: eight terms a lane, then f64.
const BLOCK: usize = 128;
const LANES: usize = 16;

/// Rows of one parallel task.
fn rows_of_task(k: usize) -> usize {
    (CHUNK / k).max(1)
}

/// Parallel tasks of `m` rows.
pub(super) fn chunks(m: usize, k: usize) -> usize {
    m.div_ceil(rows_of_task(k))
}

/// `sums` has a slot for each of the [`chunks`].
pub(super) fn forward(loss: &mut [f32], sums: &mut [f64], x: &[f32], labels: &[i32], avg: &[f32], how: Focal) {
    let rows = rows_of_task(how.k);
    let tasks = sums.par_iter_mut().zip(x.par_chunks(rows * how.k).zip(labels.par_chunks(rows)));
    match how.gamma {
        2.0 => tasks.for_each(|(sum, (x, labels))| *sum = task_loss(x, labels, how, |p| p.sigmoid * p.sigmoid)),
        g => tasks.for_each(|(sum, (x, labels))| *sum = task_loss(x, labels, how, |p| p.power(g))),
    }
    let total: f64 = sums.iter().sum();
    loss[0] = (f64::from(how.weight) * total / f64::from(avg[0])) as f32;
}

fn task_loss(x: &[f32], labels: &[i32], how: Focal, factor: impl Fn(&Parts) -> f32 + Copy) -> f64 {
    let (mut others, mut own) = (0.0, 0.0);
    for run in runs(labels, how.k) {
        match run {
            Run::Background(from, to) => others += sum(&x[from * how.k..to * how.k], factor),
            Run::Positive(row, class) => {
                let row = &x[row * how.k..][..how.k];
                others += sum(&row[..class], factor) + sum(&row[class + 1..], factor);
                own += sum(&[-row[class]], factor);
            }
            Run::Ignored(..) => {}
        }
    }
    f64::from(how.alpha) * own + (1.0 - f64::from(how.alpha)) * others
}

/// Sum of `softplus(s) factor(s)`.
#[inline(always)]
fn sum(s: &[f32], factor: impl Fn(&Parts) -> f32) -> f64 {
    let term = |s: f32| {
        let p = Parts::of(s);
        p.softplus * factor(&p)
    };
    let mut total = 0.0;
    for block in s.chunks(BLOCK) {
        let (vectors, rest) = block.as_chunks::<LANES>();
        let mut lanes = [0.0f32; LANES];
        for v in vectors {
            for (lane, &s) in lanes.iter_mut().zip(v) {
                *lane += term(s);
            }
        }
        total += lanes.iter().map(|&v| f64::from(v)).sum::<f64>();
        total += rest.iter().map(|&s| f64::from(term(s))).sum::<f64>();
    }
    total
}

pub(super) fn backward(dx: &mut [f32], dy: &[f32], x: &[f32], labels: &[i32], avg: &[f32], how: Focal) {
    let scale = dy[0] * how.weight / avg[0];
    let rows = rows_of_task(how.k);
    let tasks = dx.par_chunks_mut(rows * how.k).zip(x.par_chunks(rows * how.k)).zip(labels.par_chunks(rows));
    match how.gamma {
        2.0 => tasks.for_each(|((dx, x), labels)| {
            task_slopes(dx, x, labels, scale, how, |p| p.sigmoid * p.sigmoid);
        }),
        g => tasks.for_each(|((dx, x), labels)| task_slopes(dx, x, labels, scale, how, |p| p.power(g))),
    }
}

fn task_slopes(
    dx: &mut [f32],
    x: &[f32],
    labels: &[i32],
    scale: f32,
    how: Focal,
    factor: impl Fn(&Parts) -> f32 + Copy,
) {
    let (k, others, own) = (how.k, scale * (1.0 - how.alpha), -scale * how.alpha);
    for run in runs(labels, k) {
        match run {
            Run::Background(from, to) => {
                slopes(&mut dx[from * k..to * k], &x[from * k..to * k], others, how.gamma, factor)
            }
            Run::Positive(row, class) => {
                let (dx, x) = (&mut dx[row * k..][..k], &x[row * k..][..k]);
                slopes(dx, x, others, how.gamma, factor);
                slopes(&mut dx[class..=class], &[-x[class]], own, how.gamma, factor);
            }
            Run::Ignored(from, to) => dx[from * k..to * k].fill(0.0),
        }
    }
}

/// `dx = scale` times the derivative of `softplus(s) sigmoid(s)^gamma`.
#[inline(always)]
fn slopes(dx: &mut [f32], s: &[f32], scale: f32, gamma: f32, factor: impl Fn(&Parts) -> f32) {
    let slope = |s: f32| {
        let p = Parts::of(s);
        scale * (factor(&p) * fma(gamma * p.softplus, p.rest, p.sigmoid))
    };
    let ((dx_vectors, dx_rest), (vectors, rest)) = (dx.as_chunks_mut::<LANES>(), s.as_chunks::<LANES>());
    for (dx, s) in dx_vectors.iter_mut().zip(vectors) {
        for (dx, &s) in dx.iter_mut().zip(s) {
            *dx = slope(s);
        }
    }
    for (dx, &s) in dx_rest.iter_mut().zip(rest) {
        *dx = slope(s);
    }
}

/// Rows `from..to`, or one row and its class.
enum Run {
    Background(usize, usize),
    Ignored(usize, usize),
    Positive(usize, usize),
}

/// Joins neighbouring rows that are treated alike into one run, so that most of a task is one slice.
fn runs(labels: &[i32], k: usize) -> impl Iterator<Item = Run> {
    let (kind, mut from) = (move |label: i32| (label as i64).cmp(&(k as i64)), 0);
    std::iter::from_fn(move || {
        let &label = labels.get(from)?;
        let row = from;
        if let Some(class) = usize::try_from(label).ok().filter(|&l| l < k) {
            from += 1;
            return Some(Run::Positive(row, class));
        }
        let is_background = kind(label).is_eq();
        let same = |l: &&i32| if is_background { kind(**l).is_eq() } else { **l < 0 || kind(**l).is_gt() };
        from += labels[row..].iter().take_while(same).count();
        Some(if is_background { Run::Background(row, from) } else { Run::Ignored(row, from) })
    })
}

/// The terms of the loss and of its gradient at one `s`.
struct Parts {
    s: f32,
    log1p: f32,
    softplus: f32,
    sigmoid: f32,
    /// `1 - sigmoid`, without cancellation.
    rest: f32,
}

impl Parts {
    /// Uses `e = e^-|s|`, which does not overflow and keeps the precision of the small side, and one division for all
    /// three quotients.
    #[inline(always)]
    fn of(s: f32) -> Parts {
        let e = exp_neg(s.abs());
        let (one, two) = (1.0 + e, 2.0 + e);
        let inverse = 1.0 / (one * two);
        let large = two * inverse; // 1 / (1 + e)
        let small = e * large;
        // ln(1 + e) = 2 artanh(z) with z = e / (2 + e), at most 1/3; the polynomial is within 2e-8 of artanh(z).
        let z = e * (one * inverse);
        let w = z * z;
        let p = fma(w, 0.134_325_88, 0.141_172_08);
        let p = fma(w, fma(w, p, 0.200_038_22), 0.333_333_2);
        let z2 = z + z;
        let log1p = fma(z2 * w, p, z2);
        let positive = s > 0.0;
        Parts {
            s,
            log1p,
            softplus: if positive { s + log1p } else { log1p },
            sigmoid: if positive { large } else { small },
            rest: if positive { small } else { large },
        }
    }

    /// `sigmoid(s)^gamma = e^(-gamma softplus(-s))`.
    #[inline(always)]
    fn power(&self, gamma: f32) -> f32 {
        let softplus_of_minus = if self.s < 0.0 { self.log1p - self.s } else { self.log1p };
        exp_neg(gamma * softplus_of_minus)
    }
}

/// `e^-a` for `a >= 0`, within 2 ulp; NaN stays NaN. The smallest numbers come out subnormal, then 0.
#[inline(always)]
fn exp_neg(a: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: what is added to it is rounded to an integer, in its low bits
    let a = if a > 104.0 { 104.0 } else { a }; // e^-104 is 0 in f32
    let shifted = fma(a, -std::f32::consts::LOG2_E, ROUND);
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let turns = shifted - ROUND;
    // ln 2 in two parts, the first with zeros at its end: its product with an integer is exact.
    let r = fma(turns, -0.693_359_4, -a);
    let r = fma(turns, 2.121_944_4e-4, r);
    // Cephes' polynomial on |r| <= ln(2)/2.
    let p = fma(r, 1.987_569_1e-4, 1.398_199_9e-3);
    let p = fma(r, fma(r, p, 8.333_452e-3), 4.166_579_6e-2);
    let p = fma(r, fma(r, p, 0.166_666_65), 0.5);
    let y = fma(r * r, p, r) + 1.0;
    // 2^n in two factors: n goes down to -150, below what one f32 can scale by.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    y * power(half) * power(n.wrapping_sub(half))
}

/// Fused where the machine can: elsewhere `mul_add` is a call of the maths library.
#[inline(always)]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_logarithm_are_within_a_few_ulp() {
        let within = |got: f32, want: f64, ulps: f64| {
            let subnormal = 3.0 * f64::from(f32::from_bits(1)); // one rounding of each product
            let tolerance = ulps * want.abs() * f64::from(f32::EPSILON) / 2.0 + subnormal;
            assert!((f64::from(got) - want).abs() <= tolerance, "got {got:e}, want {want:e}");
        };
        for i in 0..=40_000 {
            let s = (i - 20_000) as f32 * 0.0051;
            let (x, p) = (f64::from(s), Parts::of(s));
            within(exp_neg(s.abs()), (-x.abs()).exp(), 4.0);
            within(p.softplus, x.max(0.0) + (-x.abs()).exp().ln_1p(), 8.0);
            within(p.sigmoid, 1.0 / (1.0 + (-x).exp()), 8.0);
            within(p.rest, 1.0 / (1.0 + x.exp()), 8.0);
            within(p.power(0.0), 1.0, 0.0);
            within(p.power(1.0), 1.0 / (1.0 + (-x).exp()), 200.0); // e^-y carries the rounding of y, up to 100
        }
        assert!(exp_neg(f32::NAN).is_nan() && exp_neg(f32::INFINITY) == 0.0 && exp_neg(0.0) == 1.0);
    }
}
