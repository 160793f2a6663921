//! One file an op: its only list of shapes, each with the reason for it, and what is checked at each.

mod bce;
mod box_decode;
mod box_encode;
mod class_candidates;
mod gather_rows;
mod smooth_l1;
mod softmax;
mod softmax_ce;

/// Sizes of one problem.
pub struct Case {
    pub name: &'static str,
    pub dims: &'static [usize],
}

/// A named problem; what `dims` are is said where they are listed.
pub const fn case(name: &'static str, dims: &'static [usize]) -> Case {
    Case { name, dims }
}
