//! Initial values of parameters. Each parameter's random stream depends only on its name and the seed, so adding a
//! layer does not change the values of the others.

use rayon::prelude::*;

use crate::philox::{Purpose, Stream};

/// The distribution of a parameter's initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All elements equal.
    Constant(f32),
    /// Normal with the given standard deviation.
    Normal(f32),
    /// Normal with the given standard deviation, truncated to ±2. As in torch's `trunc_normal_`, the bounds are
    /// absolute values, not multiples of the deviation: with the usual 0.02 they cut nothing.
    TruncNormal(f32),
    /// Normal with variance 1 / fan_in (LeCun et al. 1998, section 4.6).
    LecunNormal,
    /// Normal with variance 2 / fan_out (He et al. 2015, eq. 14): convolutions before a ReLU.
    KaimingFanOut,
    /// Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16).
    XavierUniform,
}

impl Init {
    /// Values for a weight `[O,KH,KW,I]` or `[O,I]` (or any shape, for constants).
    pub fn values(self, shape: &[usize], name: &str, seed: u64) -> Vec<f32> {
        let n: usize = shape.iter().product();
        let out = shape.first().copied().unwrap_or(1) as f32;
        let inp = shape.last().copied().unwrap_or(1) as f32;
        let taps = if shape.len() == 4 { (shape[1] * shape[2]) as f32 } else { 1.0 };
        match self {
            Init::Constant(v) => vec![v; n],
            Init::Normal(std) => normal(n, std, name, seed),
            Init::TruncNormal(std) => truncated_normal(n, std, name, seed),
            Init::LecunNormal => normal(n, (1.0 / (inp * taps)).sqrt(), name, seed),
            Init::KaimingFanOut => normal(n, (2.0 / (out * taps)).sqrt(), name, seed),
            Init::XavierUniform => {
                let bound = (6.0 / ((inp + out) * taps)).sqrt();
                blocks(n, name, seed, |b| b.map(|u| ((u >> 8) as f32 / 8_388_608.0 - 1.0) * bound))
            }
        }
    }
}

fn normal(n: usize, std: f32, name: &str, seed: u64) -> Vec<f32> {
    blocks(n, name, seed, |b| four_normal(b, std))
}

fn four_normal(b: [u32; 4], std: f32) -> [f32; 4] {
    let pair = |u1: u32, u2: u32| {
        let r = (-2.0 * ((f64::from(u1) + 1.0) / 4_294_967_296.0).ln()).sqrt(); // Box and Muller 1958
        let a = std::f64::consts::TAU * f64::from(u2) / 4_294_967_296.0;
        [(r * a.cos()) as f32 * std, (r * a.sin()) as f32 * std]
    };
    let ([a, b], [c, d]) = (pair(b[0], b[1]), pair(b[2], b[3]));
    [a, b, c, d]
}

/// Numbers beyond the bounds are replaced by those at the same index of the parameter's next stream.
fn truncated_normal(n: usize, std: f32, name: &str, seed: u64) -> Vec<f32> {
    const BOUND: f32 = 2.0;
    const ATTEMPTS: u32 = 1000; // enough for deviations up to 100; then the bound itself
    fill(n, |index| {
        let mut four = [f32::INFINITY; 4];
        for attempt in 0..ATTEMPTS {
            let next = four_normal(stream(name, seed, attempt).block(index), std);
            for (v, next) in four.iter_mut().zip(next).filter(|(v, _)| v.abs() > BOUND) {
                *v = next;
            }
            if four.iter().all(|v| v.abs() <= BOUND) {
                break;
            }
        }
        four.map(|v| v.clamp(-BOUND, BOUND))
    })
}

fn stream(name: &str, seed: u64, attempt: u32) -> Stream {
    Stream::new(seed, 0, fnv1a(name) & 0xFFFF_FFFF_FFFF, attempt, Purpose::Init)
}

fn blocks(n: usize, name: &str, seed: u64, f: impl Fn([u32; 4]) -> [f32; 4] + Sync) -> Vec<f32> {
    let stream = stream(name, seed, 0);
    fill(n, |index| f(stream.block(index)))
}

/// `n` numbers in groups of four; group `index` is `f(index)`.
fn fill(n: usize, f: impl Fn(u32) -> [f32; 4] + Sync) -> Vec<f32> {
    let mut v = vec![0.0; n];
    v.par_chunks_mut(4096).enumerate().for_each(|(chunk, v)| {
        for (i, v) in v.chunks_mut(4).enumerate() {
            let four = f((chunk * 1024 + i) as u32);
            v.copy_from_slice(&four[..v.len()]);
        }
    });
    v
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a(s: &str) -> u64 {
    s.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn std_of(v: &[f32]) -> f64 {
        let n = v.len() as f64;
        let mean = v.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (v.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
    }

    #[test]
    fn deviations_are_those_of_mmdetection() {
        // init_stats of mmdetection: backbone.layer1.0.conv2 0.0588, neck.lateral_convs.1 0.0509, shared_fcs.0 0.01214.
        let close = |v: Vec<f32>, want: f64| assert!((std_of(&v) / want - 1.0).abs() < 0.02, "{} {want}", std_of(&v));
        close(Init::KaimingFanOut.values(&[64, 3, 3, 64], "a", 1), 0.0588);
        close(Init::XavierUniform.values(&[256, 1, 1, 512], "b", 1), 0.0509);
        close(Init::XavierUniform.values(&[1024, 12544], "c", 1), 0.01214);
        close(Init::Normal(0.01).values(&[81, 1024], "d", 1), 0.01);
        close(Init::LecunNormal.values(&[96, 400], "e", 1), 0.05);
        close(Init::LecunNormal.values(&[64, 3, 3, 64], "f", 1), 1.0 / 24.0);
    }

    #[test]
    fn truncated_values_are_normal_between_the_bounds() {
        let small = Init::TruncNormal(0.02).values(&[96, 500], "a", 1);
        assert_eq!(small, Init::Normal(0.02).values(&[96, 500], "a", 1));
        // Deviations of a standard normal number cut at 2, and at 1 (times 2).
        for (std, want) in [(1.0, 0.8796), (2.0, 2.0 * 0.5396)] {
            let v = Init::TruncNormal(std).values(&[100_000], "a", 1);
            assert!(v.iter().all(|v| v.abs() < 2.0), "beyond the bounds, or at one");
            assert!((std_of(&v) / want - 1.0).abs() < 0.01, "{}", std_of(&v));
            assert!(v.iter().sum::<f32>().abs() / 1e5 < 0.01, "not centred");
        }
    }

    #[test]
    fn names_and_seeds_give_different_values() {
        let v = |name, seed| Init::Normal(1.0).values(&[7], name, seed);
        assert_ne!(v("a", 1), v("b", 1));
        assert_ne!(v("a", 1), v("a", 2));
        assert_eq!(v("a", 1), v("a", 1));
    }
}
