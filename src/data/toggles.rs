//! Converts the runs down the columns of a mask to run ends ("toggles") along its rows. No bitmap is made: the mask is
//! held as a list of changes between neighbouring columns. Main type: [`MaskScratch`].

/// Counts of the run ends in the rows of a mask. They bound the number of run ends of any resized copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowToggles {
    /// Sum over all rows.
    pub all: u32,
    /// Sum of the decreases from each row to the next, and from the last row to 0.
    pub falls: u32,
}

/// The pixels of rows `rows[0] .. rows[1]` differ between columns `x - 1` and `x` of the canvas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub x: u32,
    pub rows: [u32; 2],
}

/// Buffers that are reused from one mask to the next.
#[derive(Debug, Default)]
pub struct MaskScratch {
    /// Lengths of runs down the columns.
    pub(super) counts: Vec<u32>,
    /// Run ends of the last column that had any.
    previous: Vec<u32>,
    /// Run ends of the column being read.
    current: Vec<u32>,
    pub(super) changes: Vec<Change>,
    /// A count for each row of the canvas that the mask touches.
    pub(super) rows: Vec<u32>,
}

impl MaskScratch {
    /// Counts the run ends in the rows of a mask at its own size.
    pub(super) fn row_toggles(&mut self, counts: &[u32], height: u32) -> RowToggles {
        self.trace(counts, height, |x| x, |y| y);
        let (_, all) = self.count_rows();
        let next = self.rows.iter().skip(1).chain([&0]);
        let falls = self.rows.iter().zip(next).map(|(n, next)| n.saturating_sub(*next)).sum();
        RowToggles { all: u32::try_from(all).unwrap_or(u32::MAX), falls }
    }

    /// Finds the changes between the columns of a mask, which is given as runs down its columns. `column` and `row`
    /// move the boundaries to the canvas; both are ascending, or descending for a mirrored axis.
    pub(super) fn trace(&mut self, counts: &[u32], height: u32, column: impl Fn(u32) -> u32, row: impl Fn(u32) -> u32) {
        let Self { previous, current, changes, .. } = self;
        previous.clear();
        current.clear();
        changes.clear();
        // `end` is where the last column with run ends stops on the canvas.
        let (mut x, mut end, mut at) = (0, u32::MAX, 0);
        let mut finish = |x: u32, current: &mut Vec<u32>| {
            let (from, to) = (column(x), column(x + 1));
            if from != to && !current.is_empty() {
                if current.first() > current.last() {
                    current.reverse();
                }
                if from == end {
                    differences(previous, current, |rows| changes.push(Change { x: from, rows }));
                } else {
                    differences(previous, &[], |rows| changes.push(Change { x: end, rows }));
                    differences(&[], current, |rows| changes.push(Change { x: from, rows }));
                }
                std::mem::swap(previous, current);
                end = to;
            }
            current.clear();
        };
        for (i, &n) in counts.iter().enumerate() {
            let (mut left, start) = (n, at);
            at += n;
            if i % 2 == 0 || n == 0 {
                continue;
            }
            let (mut of, mut y) = (start / height, start % height);
            loop {
                let rows = left.min(height - y);
                if of != x {
                    finish(x, current);
                    x = of;
                }
                for edge in [row(y), row(y + rows)] {
                    if current.last() == Some(&edge) {
                        current.pop();
                    } else {
                        current.push(edge);
                    }
                }
                left -= rows;
                if left == 0 {
                    break;
                }
                (of, y) = (of + 1, 0);
            }
        }
        finish(x, current);
        differences(previous, &[], |rows| changes.push(Change { x: end, rows }));
    }

    /// Writes to `rows` how many changes touch each row, starting with the first touched row. Returns that row and the
    /// sum.
    pub(super) fn count_rows(&mut self) -> (u32, usize) {
        let top = self.changes.iter().map(|c| c.rows[0]).min().unwrap_or(0);
        let bottom = self.changes.iter().map(|c| c.rows[1]).max().unwrap_or(0);
        self.rows.clear();
        self.rows.resize((bottom - top) as usize + 1, 0);
        for c in &self.changes {
            let [first, end] = c.rows.map(|y| (y - top) as usize);
            self.rows[first] = self.rows[first].wrapping_add(1);
            self.rows[end] = self.rows[end].wrapping_sub(1);
        }
        let (mut n, mut total) = (0u32, 0usize);
        for r in &mut self.rows {
            n = n.wrapping_add(*r);
            *r = n;
            total += n as usize;
        }
        self.rows.pop();
        (top, total)
    }
}

/// Calls `found` with each interval that is inside one of two ascending lists of run ends but not inside the other.
fn differences(a: &[u32], b: &[u32], mut found: impl FnMut([u32; 2])) {
    let (mut i, mut j, mut open) = (0, 0, None);
    while i < a.len() || j < b.len() {
        let y = match (a.get(i), b.get(j)) {
            (Some(&p), Some(&q)) if p == q => {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            (Some(&p), q) if q.is_none_or(|&q| p < q) => {
                i += 1;
                p
            }
            (_, Some(&q)) => {
                j += 1;
                q
            }
            _ => unreachable!("masks: one of the lists has an element left"),
        };
        open = match open {
            None => Some(y),
            Some(start) => {
                found([start, y]);
                None
            }
        };
    }
}
