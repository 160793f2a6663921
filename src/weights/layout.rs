//! Maps each element of one of our tensors to its place in the tensor of another program.
//!
//! One description serves both ways: [`Placement::import`] gathers along it, [`Placement::export`] scatters along it,
//! so that one undoes the other whatever the layout.

/// Layout of a row of a tensor (the elements of one output) in torch, and here. Each variant names the layout in torch
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same on both sides: vectors, matrices.
    Same,
    /// `[I,KH,KW]`; `[KH,KW,I]`. Also the transposed convolution's `[O,2,2]`; `[2,2,O]`.
    Conv,
    /// `[C,1,1]`; `[C]`.
    Pointwise,
    /// Columns of a linear layer on a flattened feature map with this number of pixels. Order C, H, W; order H, W, C.
    Flattened(usize),
    /// A square convolution with kernel size k equal to its stride. `[I,k,k]`; one vector in the order kh, kw, i.
    Patch(usize),
    /// The channels of four neighbouring tokens. The order of [`MergeOrder`]; the order kh, kw, c.
    Merge(MergeOrder),
}

/// Order of the channels where Swin merges four tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeOrder {
    /// c, kh, kw: the order of mmdetection's unfold.
    ChannelsFirst,
    /// kw, kh, c, that is (0,0) (1,0) (0,1) (1,1): the order of the paper's repository and of torchvision.
    ColumnsFirst,
}

/// Order of the rows of a predictor there. Here the K classes come first, then the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The same order.
    Same,
    /// K + 1 rows, background first.
    BackgroundFirst,
    /// This number of rows for each of K + 1 classes, background first; here the background has no rows.
    WithBackground(usize),
    /// K + 1 rows for each of this number of anchors, background first; here the background has no rows.
    AnchorsWithBackground(usize),
}

/// Logit of the background class, which a sigmoid classifier does not have here: low enough never to be detected.
const NEVER: f32 = -100.0;

/// The places of our tensor's elements in the tensor of another program.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The shape there.
    pub shape: Vec<usize>,
    parts: Vec<Part>,
    /// The value of elements there that have no counterpart here.
    fill: f32,
    /// The number of elements here.
    elements: usize,
}

/// Consecutive elements here, as axes from the outermost to the innermost.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    /// Place there of the first element.
    start: usize,
    axes: Vec<Axis>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    /// Length here.
    len: usize,
    /// Stride there.
    stride: usize,
}

const fn axis(len: usize, stride: usize) -> Axis {
    Axis { len, stride }
}

impl Placement {
    /// Placement of a tensor of shape `ours`; `None` if the layout cannot have it.
    pub fn new(layout: Layout, rows: Rows, ours: &[usize]) -> Option<Placement> {
        let has_rows = !(matches!(layout, Layout::Merge(_)) && ours.len() == 1);
        let (n, row) = if has_rows { (*ours.first()?, &ours[1..]) } else { (1, ours) };
        let width: usize = row.iter().product();
        let (shape, axes): (Vec<usize>, Vec<Axis>) = match (layout, row) {
            (Layout::Same, _) => (row.to_vec(), vec![axis(width, 1)]),
            (Layout::Conv, &[kh, kw, i]) => (vec![i, kh, kw], vec![axis(kh, kw), axis(kw, 1), axis(i, kh * kw)]),
            (Layout::Pointwise, &[c]) => (vec![c, 1, 1], vec![axis(c, 1)]),
            (Layout::Flattened(map), &[w]) if map > 0 && w % map == 0 => {
                (vec![w], vec![axis(map, 1), axis(w / map, map)])
            }
            (Layout::Patch(k), &[w]) if k > 0 && w % (k * k) == 0 => {
                (vec![w / (k * k), k, k], vec![axis(k * k, 1), axis(w / (k * k), k * k)])
            }
            (Layout::Merge(order), &[w]) if w % 4 == 0 => {
                let c = w / 4;
                let strides = match order {
                    MergeOrder::ChannelsFirst => [2, 1, 4],
                    MergeOrder::ColumnsFirst => [c, 2 * c, 1],
                };
                (vec![w], vec![axis(2, strides[0]), axis(2, strides[1]), axis(c, strides[2])])
            }
            _ => return None,
        };
        // The outer axes are rows: their strides count rows, and the part begins with row `first`.
        let part = |first: usize, outer: &[Axis]| Part {
            start: first * width,
            axes: outer.iter().map(|rows| axis(rows.len, rows.stride * width)).chain(axes.iter().copied()).collect(),
        };
        let (there, parts) = match rows {
            Rows::Same => (n, vec![part(0, &[axis(n, 1)])]),
            Rows::BackgroundFirst => (n, vec![part(1, &[axis(n.checked_sub(1)?, 1)]), part(0, &[axis(1, 1)])]),
            Rows::WithBackground(each) => (n + each, vec![part(each, &[axis(n, 1)])]),
            Rows::AnchorsWithBackground(a) if a > 0 && n % a == 0 => {
                let k = n / a;
                (n + a, vec![part(1, &[axis(a, k + 1), axis(k, 1)])])
            }
            Rows::AnchorsWithBackground(_) => return None,
        };
        let never = matches!(rows, Rows::AnchorsWithBackground(_)) && row.is_empty();
        let shape = if has_rows { [&[there], shape.as_slice()].concat() } else { shape };
        Some(Placement { shape, parts, fill: if never { NEVER } else { 0.0 }, elements: ours.iter().product() })
    }

    /// The number of elements there.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Converts elements from their order to ours. Panics unless `there` has the elements of [`Placement::shape`].
    pub fn import(&self, there: &[f32]) -> Vec<f32> {
        assert_eq!(there.len(), self.elements(), "import: elements of {:?}", self.shape);
        let mut here = Vec::with_capacity(self.elements);
        self.parts.iter().for_each(|p| walk(&p.axes, p.start, &mut |at| here.push(there[at])));
        here
    }

    /// Converts elements from our order to theirs. Panics unless `here` has the elements of the shape in
    /// [`Placement::new`].
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

/// Calls `f` with the place of each element there, in our order.
fn walk(axes: &[Axis], start: usize, f: &mut impl FnMut(usize)) {
    match axes {
        [] => f(start),
        [Axis { len, stride }] => (0..*len).for_each(|i| f(start + i * stride)),
        [Axis { len, stride }, rest @ ..] => (0..*len).for_each(|i| walk(rest, start + i * stride, f)),
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
        // Our order is 00a 00b 01a 01b 10a 10b 11a 11b.
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
