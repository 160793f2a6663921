//! The order of scores that top_k and nms share: descending, the lower index first among equals, NaN last.

/// Sorts ascending where (score, index) goes descending, lower index first; -0 equals 0; NaN is after everything.
pub(crate) fn descending_key(score: f32, index: usize) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 = 0
    let rank = match bits {
        _ if score.is_nan() => u32::MAX,
        b if b >> 31 == 0 => !(b | 0x8000_0000),
        b => b,
    };
    u64::from(rank) << 32 | index as u64
}

/// The score in a key.
pub(crate) fn score_of(key: u64) -> f32 {
    match (key >> 32) as u32 {
        u32::MAX => f32::NAN,
        rank if rank >> 31 == 0 => f32::from_bits(!rank & 0x7fff_ffff),
        rank => f32::from_bits(rank),
    }
}

/// The index in a key.
pub(crate) fn index_of(key: u64) -> usize {
    key as u32 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_scores_do() {
        let order = [f32::INFINITY, 3.5, 1e-40, 0.0, -0.0, -1e-40, -2.0, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
        let keys: Vec<u64> = order.iter().enumerate().map(|(i, &s)| descending_key(s, i)).collect();
        assert!(keys.is_sorted());
        for (&key, score) in keys.iter().zip(order) {
            assert!(score_of(key) == score || score_of(key).is_nan() && score.is_nan(), "{score}");
        }
        assert!(descending_key(1.0, 7) < descending_key(1.0, 8));
        assert_eq!(index_of(descending_key(-3.0, 123_456)), 123_456);
    }
}
