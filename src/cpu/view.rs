//! Matrix views with a row stride, and loops over tasks that write disjoint parts of one buffer.
//!
//! The parts that tasks write and the work that they do are fixed by the shapes; only which thread runs a task depends on
//! the thread count, so results do not. Each running task has a *lane*: a piece of workspace that no other running task
//! has. Main types: [`MatMut`], and the loops [`par_blocks`] and [`par_cols`].

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A mutable matrix of f32: `rows` rows of `cols` elements, `ld` elements apart.
pub struct MatMut<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    ld: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a MatMut is an exclusive borrow of its elements (ensured where it is made), like `&mut [f32]`, which is Send.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A view of `data`; panics if the matrix does not fit into it.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, ld: usize) -> Self {
        assert!(cols <= ld || rows <= 1);
        let end = |rows: usize| (rows - 1).checked_mul(ld)?.checked_add(cols);
        assert!(rows == 0 || end(rows).is_some_and(|end| end <= data.len()));
        MatMut { ptr: data.as_mut_ptr(), rows, cols, ld, life: PhantomData }
    }
    /// Number of rows.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns.
    #[inline(always)]
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Distance between rows.
    #[inline(always)]
    pub fn ld(&self) -> usize {
        self.ld
    }
    /// The address of the first element; the elements of the view may be written through it while `self` is borrowed.
    #[inline(always)]
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.ptr
    }
    /// Row `i`.
    #[inline(always)]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: i < rows (checked), so the row lies inside the elements that this view borrows exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.ld), self.cols) }
    }
    /// The part made of rows `r` and columns `c`.
    #[inline(always)]
    pub fn part(&mut self, r: Range<usize>, c: Range<usize>) -> MatMut<'_> {
        assert!(r.start <= r.end && r.end <= self.rows && c.start <= c.end && c.end <= self.cols);
        let offset = if r.is_empty() { 0 } else { r.start * self.ld + c.start };
        // SAFETY: the start of a non-empty part lies inside the view (checked above).
        let ptr = unsafe { self.ptr.add(offset) };
        MatMut { ptr, rows: r.len(), cols: c.len(), ld: self.ld, life: PhantomData }
    }
}

/// How many lanes a workspace is cut into: at most this many tasks run at once.
pub const MAX_LANES: usize = 16;

/// Workspace of a loop over `tasks` tasks that need `lane_len` elements each.
pub fn lanes_len(tasks: usize, lane_len: usize) -> usize {
    tasks.min(MAX_LANES) * lane_len
}

/// Elements to ask for beyond a workspace that is to be passed through [`aligned`].
pub const ALIGN_SLACK: usize = 15;

/// The part of `ws` from its first cache line on: vectors that cross cache lines cost twice. Tensors begin on one
/// ([`ALIGN_BYTES`](super::ALIGN_BYTES)), so nothing is skipped; callers with a `Vec` (tests, benches) may begin 16 bytes
/// after one.
pub fn aligned(ws: &mut [f32]) -> &mut [f32] {
    let skip = ws.as_ptr().align_offset(64).min(ws.len());
    &mut ws[skip..]
}

/// Runs `f(task, lane)` for every task in `0..tasks`; each concurrent call has its own lane of `lane_len` elements of `ws`.
pub(super) fn run_lanes(tasks: usize, ws: &mut [f32], lane_len: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if tasks == 0 {
        return;
    }
    let fit = ws.len().checked_div(lane_len).unwrap_or(MAX_LANES);
    assert!(fit > 0, "workspace of {} elements, {lane_len} wanted", ws.len());
    let lanes = fit.min(MAX_LANES).min(tasks).min(rayon::current_num_threads());
    if lanes == 1 {
        (0..tasks).for_each(|t| f(t, &mut ws[..lane_len]));
        return;
    }
    let next = AtomicUsize::new(0);
    let drain = |lane: &mut [f32]| {
        loop {
            let t = next.fetch_add(1, Ordering::Relaxed);
            if t >= tasks {
                return;
            }
            f(t, lane);
        }
    };
    if lane_len == 0 {
        (0..lanes).into_par_iter().with_max_len(1).for_each(|_| drain(&mut []));
    } else {
        ws[..lanes * lane_len].par_chunks_mut(lane_len).with_max_len(1).for_each(drain);
    }
}

pub(super) struct Shared(pub(super) *mut f32);
// SAFETY: only par_blocks, par_cols and par_windows use it, which give each task elements that no other task gets.
unsafe impl Sync for Shared {}
impl Shared {
    pub(super) fn get(&self) -> *mut f32 {
        self.0
    }
}

/// Cuts `y` into groups of `group` elements and each group into blocks of `block` elements (the last of a group may be
/// shorter), and runs `f(group index, index in the group, block, lane)` for every block, in parallel.
pub fn par_blocks(
    y: &mut [f32],
    group: usize,
    block: usize,
    ws: &mut [f32],
    lane_len: usize,
    f: impl Fn(usize, usize, &mut [f32], &mut [f32]) + Sync,
) {
    if y.is_empty() {
        return;
    }
    assert!(block > 0 && group > 0 && y.len().is_multiple_of(group));
    let groups = y.len() / group;
    let per_group = group.div_ceil(block);
    let base = Shared(y.as_mut_ptr());
    run_lanes(groups * per_group, ws, lane_len, |t, lane| {
        let (g, i) = (t / per_group, t % per_group);
        let start = i * block;
        // SAFETY: g < groups and start < group, so the block lies inside group g of `y`. run_lanes hands out each task once,
        // and the blocks of different tasks are disjoint.
        let part =
            unsafe { std::slice::from_raw_parts_mut(base.get().add(g * group + start), block.min(group - start)) };
        f(g, i, part, lane);
    });
}

/// Runs `f(task, columns, lane)` for every block of `width` columns of `y` (the last may be narrower), in parallel.
pub fn par_cols(
    mut y: MatMut<'_>,
    width: usize,
    ws: &mut [f32],
    lane_len: usize,
    f: impl Fn(usize, MatMut<'_>, &mut [f32]) + Sync,
) {
    assert!(width > 0);
    let (rows, cols, ld) = (y.rows, y.cols, y.ld);
    let base = Shared(y.as_mut_ptr());
    let tasks = if rows == 0 { 0 } else { cols.div_ceil(width) };
    run_lanes(tasks, ws, lane_len, |t, lane| {
        let c0 = t * width;
        // SAFETY: c0 < cols, so the block starts inside the view that `y` borrows exclusively; run_lanes hands out each task
        // once, and the column ranges of different tasks are disjoint.
        let ptr = unsafe { base.get().add(c0) };
        f(t, MatMut { ptr, rows, cols: width.min(cols - c0), ld, life: PhantomData }, lane);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "is_some_and")]
    fn a_matrix_that_wraps_does_not_fit() {
        MatMut::new(&mut [0.0; 8], 3, 1, usize::MAX / 2 + 1); // 2 * ld is 0 modulo 2^64
    }

    #[test]
    fn rows_and_columns_are_written_once() {
        let mut y = vec![0f32; 102];
        let mut ws = vec![0f32; 8 * 3];
        par_blocks(&mut y, 51, 10, &mut ws, 3, |g, i, block, lane| {
            lane.fill((g * 6 + i) as f32);
            assert_eq!(block.len(), if i == 5 { 1 } else { 10 });
            block.iter_mut().for_each(|v| *v += 1.0 + lane[2]);
        });
        for (i, &v) in y.iter().enumerate() {
            assert_eq!(v, 1.0 + (i / 51 * 6 + i % 51 / 10) as f32);
        }
        let mut m = vec![0f32; 7 * 20];
        par_cols(MatMut::new(&mut m, 7, 18, 20), 4, &mut [], 0, |t, mut part, _| {
            for r in 0..part.rows() {
                part.row_mut(r).iter_mut().for_each(|v| *v += t as f32 + 1.0);
            }
        });
        for r in 0..7 {
            for c in 0..20 {
                assert_eq!(m[r * 20 + c], if c < 18 { (c / 4) as f32 + 1.0 } else { 0.0 });
            }
        }
    }
}
