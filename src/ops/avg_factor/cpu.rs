//! CPU loops of avg_factor.

use super::AvgFactor;

pub(super) fn forward(y: &mut [f32], counts: &[i32], kind: AvgFactor) {
    let each = counts.chunks_exact(2).map(|c| (i64::from(c[0]), i64::from(c[1])));
    let total: i64 = match kind {
        AvgFactor::Rpn => each.map(|(pos, neg)| pos.max(1) + neg.max(1)).sum(),
        AvgFactor::Roi => each.map(|(pos, neg)| pos + neg).sum(),
        AvgFactor::Dense => each.map(|(pos, _)| pos.max(1)).sum(),
        AvgFactor::Positives => each.map(|(pos, _)| pos).sum(),
    };
    y[0] = total.max(1) as f32;
}
