//! Where each element of a tensor of ours lies in the tensor of another program.
//!
//! One description serves both ways: [`Placement::import`] gathers along it, [`Placement::export`] scatters along it, so
//! that one undoes the other whatever the layout.

/// How a row of a tensor (what belongs to one output) is laid out in torch, and here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same: vectors, matrices.
    Same,
    /// `[I,KH,KW]`; `[KH,KW,I]`. (And the transposed convolution's `[O,2,2]`; `[2,2,O]`.)
    Conv,
    /// `[C,1,1]`; `[C]`.
    Pointwise,
    /// Columns of a layer on a flattened map of so many pixels: C, H, W; H, W, C.
    Flattened(usize),
    /// A square convolution as wide as its stride, `[I,k,k]`; its patch as one vector, in the order kh, kw, i.
    Patch(usize),
    /// Four neighbours side by side: [`MergeOrder`]; in the order kh, kw, c.
    Merge(MergeOrder),
}

/// Order of the channels of four tokens that Swin merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOrder {
    /// c, kh, kw: as mmdetection's unfold has it.
    ChannelsFirst,
    /// kw, kh, c: as the paper's repository and torchvision have it, (0,0) (1,0) (0,1) (1,1).
    ColumnsFirst,
}

/// How the rows of a predictor are ordered there; here the K classes come first, and then the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As here.
    Same,
    /// K + 1 rows, background first.
    BackgroundFirst,
    /// So many rows for each of K + 1 classes, background first; here it has none.
    WithBackground(usize),
    /// K + 1 rows for each of so many anchors, background first; here it has none.
    AnchorsWithBackground(usize),
}

/// Logit of a background class that a sigmoid classifier does not have here: it is never found.
const NEVER: f32 = -100.0;

/// A tensor of ours in the tensor of another program.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Shape there.
    pub shape: Vec<usize>,
    parts: Vec<Part>,
    /// What elements have there that are not here.
    fill: f32,
    /// Elements here.
    elements: usize,
}

/// Consecutive elements of ours: axes, outermost first, each with its length here and its stride there.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    start: usize,
    axes: Vec<(usize, usize)>,
}

impl Placement {
    /// Of a tensor of this shape. None if the shape is none that the layout can be of.
    pub fn new(layout: Layout, rows: Rows, ours: &[usize]) -> Option<Placement> {
        let has_rows = !(matches!(layout, Layout::Merge(_)) && ours.len() == 1);
        let (n, row) = if has_rows { (*ours.first()?, &ours[1..]) } else { (1, ours) };
        let width: usize = row.iter().product();
        let (shape, axes): (Vec<usize>, Vec<(usize, usize)>) = match (layout, row) {
            (Layout::Same, _) => (row.to_vec(), vec![(width, 1)]),
            (Layout::Conv, &[kh, kw, i]) => (vec![i, kh, kw], vec![(kh, kw), (kw, 1), (i, kh * kw)]),
            (Layout::Pointwise, &[c]) => (vec![c, 1, 1], vec![(c, 1)]),
            (Layout::Flattened(map), &[w]) if map > 0 && w % map == 0 => (vec![w], vec![(map, 1), (w / map, map)]),
            (Layout::Patch(k), &[w]) if k > 0 && w % (k * k) == 0 => {
                (vec![w / (k * k), k, k], vec![(k * k, 1), (w / (k * k), k * k)])
            }
            (Layout::Merge(order), &[w]) if w % 4 == 0 => {
                let c = w / 4;
                let strides = match order {
                    MergeOrder::ChannelsFirst => [2, 1, 4],
                    MergeOrder::ColumnsFirst => [c, 2 * c, 1],
                };
                (vec![w], vec![(2, strides[0]), (2, strides[1]), (c, strides[2])])
            }
            _ => return None,
        };
        // Rows first, `count` of them `step` rows apart, `first` rows from the start.
        let part = |first: usize, outer: &[(usize, usize)]| Part {
            start: first * width,
            axes: outer.iter().map(|&(count, step)| (count, step * width)).chain(axes.iter().copied()).collect(),
        };
        let (there, parts) = match rows {
            Rows::Same => (n, vec![part(0, &[(n, 1)])]),
            Rows::BackgroundFirst => (n, vec![part(1, &[(n.checked_sub(1)?, 1)]), part(0, &[(1, 1)])]),
            Rows::WithBackground(each) => (n + each, vec![part(each, &[(n, 1)])]),
            Rows::AnchorsWithBackground(a) if a > 0 && n % a == 0 => {
                let k = n / a;
                (n + a, vec![part(1, &[(a, k + 1), (k, 1)])])
            }
            Rows::AnchorsWithBackground(_) => return None,
        };
        let never = matches!(rows, Rows::AnchorsWithBackground(_)) && row.is_empty();
        let shape = if has_rows { [&[there], shape.as_slice()].concat() } else { shape };
        Some(Placement { shape, parts, fill: if never { NEVER } else { 0.0 }, elements: ours.iter().product() })
    }

    /// Elements there.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// From there to here. Panics unless `there` has the elements of [`Placement::shape`].
    pub fn import(&self, there: &[f32]) -> Vec<f32> {
        assert_eq!(there.len(), self.elements(), "import: elements of {:?}", self.shape);
        let mut here = Vec::with_capacity(self.elements);
        self.parts.iter().for_each(|p| walk(&p.axes, p.start, &mut |at| here.push(there[at])));
        here
    }

    /// From here to there. Panics unless `here` has the elements that this was made for.
    pub fn export(&self, here: &[f32]) -> Vec<f32> {
        assert_eq!(here.len(), self.elements, "export: elements of {:?}", self.shape);
        let mut there = vec![self.fill; self.elements()];
        let mut next = here.iter();
        for part in &self.parts {
            walk(&part.axes, part.start, &mut |at| there[at] = *next.next().unwrap_or(&f32::NAN));
        }
        there
    }
}

/// Calls `f` with the place there of each element, in our order.
fn walk(axes: &[(usize, usize)], start: usize, f: &mut impl FnMut(usize)) {
    match axes {
        [] => f(start),
        [(n, stride)] => (0..*n).for_each(|i| f(start + i * stride)),
        [(n, stride), rest @ ..] => (0..*n).for_each(|i| walk(rest, start + i * stride, f)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32 + 1.0).collect()
    }

    fn of(layout: Layout, rows: Rows, shape: &[usize]) -> Placement {
        Placement::new(layout, rows, shape).unwrap_or_else(|| panic!("{layout:?} {rows:?} {shape:?}"))
    }

    #[test]
    fn one_undoes_the_other() {
        use Layout::{Conv, Flattened, Merge, Patch, Pointwise, Same};
        use MergeOrder::{ChannelsFirst, ColumnsFirst};
        let anchors = Rows::AnchorsWithBackground(3);
        let cases: &[(Layout, Rows, &[usize], &[usize])] = &[
            (Same, Rows::Same, &[7], &[7]),
            (Same, Rows::Same, &[0], &[0]),
            (Same, Rows::Same, &[5, 3], &[5, 3]),
            (Conv, Rows::Same, &[4, 3, 2, 5], &[4, 5, 3, 2]),
            (Pointwise, Rows::WithBackground(1), &[4, 6], &[5, 6, 1, 1]),
            (Flattened(9), Rows::Same, &[2, 36], &[2, 36]),
            (Patch(4), Rows::Same, &[5, 48], &[5, 3, 4, 4]),
            (Merge(ChannelsFirst), Rows::Same, &[12], &[12]),
            (Merge(ColumnsFirst), Rows::Same, &[12], &[12]),
            (Merge(ChannelsFirst), Rows::Same, &[6, 12], &[6, 12]),
            (Merge(ColumnsFirst), Rows::Same, &[6, 12], &[6, 12]),
            (Same, Rows::BackgroundFirst, &[4, 3], &[4, 3]),
            (Same, Rows::BackgroundFirst, &[1], &[1]),
            (Same, Rows::WithBackground(4), &[8, 3], &[12, 3]),
            (Same, Rows::WithBackground(4), &[8], &[12]),
            (Conv, anchors, &[6, 3, 3, 2], &[9, 2, 3, 3]),
            (Same, anchors, &[6], &[9]),
        ];
        for &(layout, rows, ours, theirs) in cases {
            let p = of(layout, rows, ours);
            assert_eq!(p.shape, theirs, "{layout:?} {rows:?}");
            let x = counting(ours.iter().product());
            let there = p.export(&x);
            assert_eq!(p.import(&there), x, "{layout:?} {rows:?}");
            let kept = there.iter().filter(|v| **v > 0.0).count();
            assert_eq!(kept, x.len(), "{layout:?} {rows:?}: each element has its own place");
        }
    }

    #[test]
    fn elements_are_where_torch_has_them() {
        // [O,I,KH,KW] = [1,2,1,3] there.
        assert_eq!(of(Layout::Conv, Rows::Same, &[1, 1, 3, 2]).export(&counting(6)), [1., 3., 5., 2., 4., 6.]);
        // Two pixels of three channels: C, H, W there.
        assert_eq!(of(Layout::Flattened(2), Rows::Same, &[1, 6]).export(&counting(6)), [1., 4., 2., 5., 3., 6.]);
        // Ours is 00a 00b 01a 01b 10a 10b 11a 11b.
        let merge = |order| of(Layout::Merge(order), Rows::Same, &[8]).export(&counting(8));
        assert_eq!(merge(MergeOrder::ChannelsFirst), [1., 3., 5., 7., 2., 4., 6., 8.]);
        assert_eq!(merge(MergeOrder::ColumnsFirst), [1., 2., 5., 6., 3., 4., 7., 8.]);
        assert_eq!(of(Layout::Same, Rows::BackgroundFirst, &[3]).export(&counting(3)), [3., 1., 2.]);
        let boxes = of(Layout::Same, Rows::WithBackground(4), &[4]).export(&counting(4));
        assert_eq!(boxes, [0., 0., 0., 0., 1., 2., 3., 4.]);
        let anchors = of(Layout::Same, Rows::AnchorsWithBackground(2), &[4]).export(&counting(4));
        assert_eq!(anchors, [NEVER, 1., 2., NEVER, 3., 4.]);
    }

    #[test]
    fn shapes_that_are_none_of_the_layouts() {
        for (layout, rows, shape) in [
            (Layout::Conv, Rows::Same, &[2, 3][..]),
            (Layout::Flattened(49), Rows::Same, &[2, 48]),
            (Layout::Flattened(0), Rows::Same, &[2, 48]),
            (Layout::Merge(MergeOrder::ChannelsFirst), Rows::Same, &[6]),
            (Layout::Same, Rows::AnchorsWithBackground(3), &[7]),
            (Layout::Same, Rows::BackgroundFirst, &[0, 3]),
            (Layout::Same, Rows::Same, &[]),
        ] {
            assert_eq!(Placement::new(layout, rows, shape), None, "{layout:?} {rows:?} {shape:?}");
        }
    }
}
