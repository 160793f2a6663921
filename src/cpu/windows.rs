//! Maps cut into square windows, cyclically shifted, as Swin Transformer has them; and a loop over windows whose tasks write the
//! pixels of their own.
//!
//! A map of `h`×`w` pixels is thought padded at its bottom and right to whole windows; window (i, j) covers rows
//! `i side + shift ..` and columns `j side + shift ..` of the padded map, modulo its size. Main types: [`Windows`], [`Cells`],
//! and the loop [`par_windows`].

use std::marker::PhantomData;
use std::ops::Range;

use super::view::{Shared, run_lanes};

/// How `n` maps are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Maps.
    pub n: usize,
    /// Rows of a map.
    pub h: usize,
    /// Columns of a map.
    pub w: usize,
    /// Rows and columns of a window.
    pub side: usize,
    /// Rows and columns by which the windows are moved down and right; less than `side`.
    pub shift: usize,
}

/// One window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    of: Windows,
    index: usize,
    /// Its map's first pixel.
    first: usize,
    /// Its first row and column, before they wrap.
    top: usize,
    left: usize,
    /// Whether it has rows, columns, of two ends of the map.
    pub wraps: [bool; 2],
}

impl Windows {
    /// Windows of a column and of a row of a map.
    pub fn grid(&self) -> [usize; 2] {
        [self.h.div_ceil(self.side), self.w.div_ceil(self.side)]
    }

    /// Windows of all maps; none where maps have no pixels.
    pub fn count(&self) -> usize {
        let [down, across] = self.grid();
        self.n * down * across
    }

    /// Tokens of a window.
    pub fn tokens(&self) -> usize {
        self.side * self.side
    }

    /// Whether some window has tokens outside the map.
    pub fn padded(&self) -> bool {
        !self.h.is_multiple_of(self.side) || !self.w.is_multiple_of(self.side)
    }

    /// The `i`-th window: map, row, column.
    pub fn window(&self, i: usize) -> Window {
        let [down, across] = self.grid();
        let (row, column) = (i / across % down, i % across);
        Window {
            of: *self,
            index: i,
            first: i / (down * across) * self.h * self.w,
            top: row * self.side + self.shift,
            left: column * self.side + self.shift,
            wraps: [self.shift > 0 && row + 1 == down, self.shift > 0 && column + 1 == across],
        }
    }
}

impl Window {
    /// Rows and columns.
    pub fn side(&self) -> usize {
        self.of.side
    }

    /// The pixel of token (a, b), counted over all maps; none if it is padding.
    #[inline(always)]
    pub fn pixel(&self, a: usize, b: usize) -> Option<usize> {
        let Windows { h, w, side, .. } = self.of;
        let wrap = |i: usize, size: usize| {
            let padded = size.next_multiple_of(side);
            if i >= padded { i - padded } else { i }
        };
        let (row, column) = (wrap(self.top + a, h), wrap(self.left + b, w));
        (row < h && column < w).then(|| self.first + row * w + column)
    }

    /// Which part of the map token (a, b) is from, of up to four that meet in a window that wraps.
    pub fn region(&self, a: usize, b: usize) -> usize {
        let end = self.of.side - self.of.shift;
        2 * usize::from(self.wraps[0] && a >= end) + usize::from(self.wraps[1] && b >= end)
    }
}

/// The pixels of some windows, exclusively borrowed.
pub struct Cells<'a> {
    ptr: *mut f32,
    c: usize,
    of: Windows,
    range: Range<usize>,
    life: PhantomData<&'a mut [f32]>,
}

impl Cells<'_> {
    /// The windows.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The elements of token (a, b) of a window; none if it is padding. Panics if the window is not one of these.
    #[inline(always)]
    pub fn get(&mut self, window: &Window, a: usize, b: usize) -> Option<&mut [f32]> {
        assert!(self.range.contains(&window.index) && window.of == self.of && a < self.of.side && b < self.of.side);
        let pixel = window.pixel(a, b)?;
        // SAFETY: the pixel is one of the maps', whose `c` elements each lie inside the buffer (par_windows checks its size), and
        // belongs to this token of this window alone; the window is one of those that this value borrows.
        Some(unsafe { std::slice::from_raw_parts_mut(self.ptr.add(pixel * self.c), self.c) })
    }
}

/// What the tasks of [`par_windows`] write.
pub struct Outputs<'a> {
    /// `c` elements for each pixel of the maps.
    pub map: &'a mut [f32],
    /// Elements of a pixel.
    pub c: usize,
    /// `per_window` elements for each window.
    pub windows: &'a mut [f32],
    /// Elements of a window.
    pub per_window: usize,
    /// `per_task` elements for each task.
    pub tasks: &'a mut [f32],
    /// Elements of a task.
    pub per_task: usize,
}

/// A task's part of [`Outputs`].
pub struct Part<'a> {
    /// The pixels of the task's windows.
    pub cells: Cells<'a>,
    /// The elements of its windows.
    pub windows: &'a mut [f32],
    /// Its own elements.
    pub task: &'a mut [f32],
}

/// Runs `f(part, lane)` for every `chunk` windows (the last task may have fewer), in parallel; each concurrent call has its
/// own lane of `lane_len` elements of `ws`.
pub fn par_windows(
    all: Windows,
    chunk: usize,
    out: Outputs<'_>,
    ws: &mut [f32],
    lane_len: usize,
    f: impl Fn(Part<'_>, &mut [f32]) + Sync,
) {
    let count = all.count();
    let tasks = count.div_ceil(chunk);
    let Outputs { map, c, windows, per_window, tasks: own, per_task } = out;
    assert!(all.shift < all.side && map.len() == all.n * all.h * all.w * c);
    assert!(windows.len() == count * per_window && own.len() == tasks * per_task);
    let (map, windows, own) = (Shared(map.as_mut_ptr()), Shared(windows.as_mut_ptr()), Shared(own.as_mut_ptr()));
    run_lanes(tasks, ws, lane_len, |t, lane| {
        let range = t * chunk..count.min((t + 1) * chunk);
        // SAFETY: run_lanes hands out each task once, tasks have different windows, and the lengths are checked above.
        let (windows, task) = unsafe {
            let first = windows.get().add(range.start * per_window);
            (
                std::slice::from_raw_parts_mut(first, range.len() * per_window),
                std::slice::from_raw_parts_mut(own.get().add(t * per_task), per_task),
            )
        };
        let cells = Cells { ptr: map.get(), c, of: all, range, life: PhantomData };
        f(Part { cells, windows, task }, lane);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_is_in_one_window() {
        for (n, h, w, side, shift) in
            [(2, 10, 12, 7, 0), (2, 10, 12, 7, 3), (1, 3, 20, 5, 4), (1, 1, 1, 4, 2), (3, 0, 5, 2, 1)]
        {
            let all = Windows { n, h, w, side, shift };
            let mut map = vec![0f32; n * h * w * 3];
            let (mut per_window, mut per_task) = (vec![0f32; all.count() * 2], vec![0f32; all.count().div_ceil(3)]);
            let out = Outputs {
                map: &mut map,
                c: 3,
                windows: &mut per_window,
                per_window: 2,
                tasks: &mut per_task,
                per_task: 1,
            };
            par_windows(all, 3, out, &mut [], 0, |mut part, _| {
                part.task[0] += 1.0;
                part.windows.iter_mut().for_each(|v| *v += 1.0);
                for i in part.cells.range() {
                    let window = all.window(i);
                    for t in 0..all.tokens() {
                        if let Some(cell) = part.cells.get(&window, t / side, t % side) {
                            cell.iter_mut().for_each(|v| *v += (i + 1) as f32);
                        }
                    }
                }
            });
            assert!(per_window.iter().chain(&per_task).all(|&v| v == 1.0));
            let [down, across] = all.grid();
            for (i, &got) in map.iter().enumerate() {
                let (image, row, column) = (i / 3 / (h * w), i / 3 / w % h, i / 3 % w);
                let place = |at: usize, windows: usize| (at + windows * side - shift) % (windows * side) / side;
                let want = (image * down + place(row, down)) * across + place(column, across) + 1;
                assert_eq!(got, want as f32, "{all:?}: element {i}");
            }
        }
    }

    #[test]
    fn regions_are_told_apart_where_ends_meet() {
        let all = Windows { n: 1, h: 10, w: 4, side: 4, shift: 1 };
        let regions = |i: usize| (0..16).map(|t| all.window(i).region(t / 4, t % 4)).collect::<Vec<_>>();
        assert_eq!(regions(0), [0, 0, 0, 1].repeat(4)); // one column of windows: its last column comes from the left end
        assert_eq!(regions(2)[8..], [0, 0, 0, 1, 2, 2, 2, 3]);
        assert!(Windows { shift: 0, ..all }.window(2).wraps == [false; 2]);
    }
}
