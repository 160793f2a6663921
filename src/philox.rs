//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): randomness as a function of
//! (seed, stage, step, image, purpose, index), the same on every device and for every thread count.

/// What a random number is for. The value is part of the counter: two purposes never share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Order of the images in an epoch.
    Order = 1,
    /// Scale jitter.
    Scale = 2,
    /// Position of the crop.
    Crop = 3,
    /// Horizontal flip.
    Flip = 4,
    /// Samples of the region proposal network.
    SampleRpn = 5,
    /// Samples of a RoI head.
    SampleRoi = 6,
    /// Initial weights.
    Init = 7,
    /// The built-in data set of shapes.
    Shapes = 8,
    /// A replacement for an image that an augmentation rejected.
    Redraw = 9,
    /// Colour jitter.
    Colour = 10,
    /// Residual branches that a step leaves out.
    DropPath = 11,
    /// Stochastic rounding of optimizer state.
    StateRounding = 12,
    /// Tests.
    Test = 255,
}

/// Factors of a round.
const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What a round adds to the key: golden ratio, sqrt(3) - 1.
const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits for a counter and a key.
#[inline]
pub fn philox4x32_10(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(M[0]) * u64::from(c[0]);
        let p1 = u64::from(M[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(W[0]), k[1].wrapping_add(W[1])];
    }
    c
}

/// The place of a stream of random numbers: who asks, and where in the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    image: u32,
    step: u64,
    stage_purpose: u32,
}

impl Stream {
    /// The stream of (seed, stage, step, image, purpose). `step` has 48 bits, `stage` 8.
    pub fn new(seed: u64, stage: u8, step: u64, image: u32, purpose: Purpose) -> Self {
        debug_assert!(step < 1 << 48);
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            image,
            step,
            stage_purpose: u32::from(stage) << 24 | u32::from(purpose as u8) << 16,
        }
    }

    /// The stream of image `n` of a pass, or of tensor `n` of an optimizer step, whose key is a tensor as [`key`] makes
    /// it.
    pub(crate) fn of_key(key: &[i32], n: u32, purpose: Purpose) -> Self {
        let [seed_lo, seed_hi, stage, step_lo, step_hi, first] = std::array::from_fn(|i| key[i] as u32);
        let seed = u64::from(seed_hi) << 32 | u64::from(seed_lo);
        let step = u64::from(step_hi) << 32 | u64::from(step_lo);
        Self::new(seed, stage as u8, step, first.wrapping_add(n), purpose)
    }

    /// 128 bits of block `index`.
    #[inline]
    pub fn block(&self, index: u32) -> [u32; 4] {
        let c3 = self.stage_purpose | (self.step >> 32) as u32 & 0xFFFF;
        philox4x32_10([index, self.image, self.step as u32, c3], self.key)
    }

    /// Blocks `first` and up, in order: as [`Stream::block`] gives them, several at a time.
    #[inline]
    pub(crate) fn blocks<const N: usize>(&self, first: u32) -> [[u32; 4]; N] {
        let last = self.stage_purpose | (self.step >> 32) as u32 & 0xFFFF;
        let mut c = [[0; N], [self.image; N], [self.step as u32; N], [last; N]];
        for (i, c0) in c[0].iter_mut().enumerate() {
            *c0 = first.wrapping_add(i as u32);
        }
        let mut k = self.key;
        for _ in 0..10 {
            let [c0, c1, c2, c3] = &mut c;
            for i in 0..N {
                let (p0, p1) = (u64::from(M[0]) * u64::from(c0[i]), u64::from(M[1]) * u64::from(c2[i]));
                (c0[i], c2[i]) = ((p1 >> 32) as u32 ^ c1[i] ^ k[0], (p0 >> 32) as u32 ^ c3[i] ^ k[1]);
                (c1[i], c3[i]) = (p1 as u32, p0 as u32);
            }
            k = [k[0].wrapping_add(W[0]), k[1].wrapping_add(W[1])];
        }
        std::array::from_fn(|i| [c[0][i], c[1][i], c[2][i], c[3][i]])
    }

    /// A sequential reader.
    pub fn rng(self) -> Rng {
        Rng { stream: self, next: 0, block: [0; 4] }
    }
}

/// The key of a step's random numbers as ops read it, i32 `[6]`: seed (low, high), stage, step (low, high), first
/// image.
pub fn key(seed: u64, stage: u8, step: u64, first: u32) -> [i32; 6] {
    [seed as u32, (seed >> 32) as u32, u32::from(stage), step as u32, (step >> 32) as u32, first].map(|v| v as i32)
}

/// Reads a [`Stream`] in order.
#[derive(Clone, Debug)]
pub struct Rng {
    stream: Stream,
    next: u32,
    block: [u32; 4],
}

impl Rng {
    /// The next 32 bits.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        if self.next.is_multiple_of(4) {
            self.block = self.stream.block(self.next / 4);
        }
        let v = self.block[(self.next % 4) as usize];
        self.next += 1;
        v
    }

    /// Uniform in [0, 1), 24 bits.
    #[inline]
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [lo, hi).
    pub fn range(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.uniform()
    }

    /// Uniform integer in [0, n), by the high part of a product (bias below n / 2^32). `n` must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        debug_assert!(n > 0);
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            v.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_differ_by_every_part_of_their_key() {
        let base = Stream::new(1, 0, 7, 2, Purpose::Crop);
        for other in [
            Stream::new(2, 0, 7, 2, Purpose::Crop),
            Stream::new(1, 1, 7, 2, Purpose::Crop),
            Stream::new(1, 0, 8, 2, Purpose::Crop),
            Stream::new(1, 0, 7, 3, Purpose::Crop),
            Stream::new(1, 0, 7, 2, Purpose::Flip),
        ] {
            assert_ne!(base.block(0), other.block(0));
        }
    }

    #[test]
    fn a_key_is_the_stream_that_it_names() {
        let (seed, step) = (0x8765_4321_0FED_CBA9, 0xABCD_1234_5678);
        let got = Stream::of_key(&key(seed, 200, step, u32::MAX), 3, Purpose::DropPath);
        assert_eq!(got, Stream::new(seed, 200, step, 2, Purpose::DropPath));
    }

    #[test]
    fn sequential_and_random_access_agree() {
        let s = Stream::new(3, 1, 2, 3, Purpose::Test);
        let mut r = s.rng();
        for i in 0..11 {
            assert_eq!(r.next_u32(), s.block(i / 4)[i as usize % 4]);
        }
        let many = s.blocks::<8>(u32::MAX - 3);
        assert!((0..8).all(|i| many[i] == s.block((u32::MAX - 3).wrapping_add(i as u32))));
    }
}
