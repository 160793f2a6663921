//! One batch of pictures and ground truth, as a loader delivers it.

use super::buckets::Shape;

/// Pictures and ground truth of one step, in plain vectors: `B` pictures of `H` × `W`, with ground truth padded to `G`
/// boxes and `S` run ends of masks.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Batch {
    /// Number of the batch, counted from 0 at the start of the stage.
    pub step: u64,
    /// Index of the shape in [`Buckets::shapes`](super::buckets::Buckets::shapes).
    pub bucket: usize,
    /// Height `H` in pixels.
    pub height: u32,
    /// Width `W` in pixels.
    pub width: u32,
    /// `[B,H,W,3]` RGB; 0 outside the content.
    pub images: Vec<u8>,
    /// `[B,4]`: height and width of the content, height and width of its padded shape.
    pub sizes: Vec<f32>,
    /// `[B,G,4]` x0, y0, x1, y1 in pixels of the batch's pictures; 0 where there is no box.
    pub gt_boxes: Vec<f32>,
    /// `[B,G]` class index; -1 where there is no box.
    pub gt_labels: Vec<i32>,
    /// `[B]` number of boxes.
    pub gt_count: Vec<i32>,
    /// `[B,S]` masks of the ground truth, those of one image one after another. Each is a list of positions `y * W + x`
    /// where runs of pixels begin and end, ascending within an object. A pixel is set if an odd number of its object's
    /// positions are at or before it. Padded with `i32::MAX`; empty if masks are off.
    pub gt_mask_runs: Vec<i32>,
    /// `[B,G+1]` object g owns `runs[offsets[g]..offsets[g + 1]]` of its image. Empty if masks are off.
    pub gt_mask_offsets: Vec<i32>,
    /// `[B]` image ids of the annotation file.
    pub image_ids: Vec<i64>,
    /// `[B]` indices into the data set's images.
    pub indices: Vec<usize>,
    /// `[B,2]` horizontal and vertical scale: batch pixels = original pixels × scale (before crop and flip).
    pub scale_factors: Vec<[f32; 2]>,
    /// `[B,2]` width and height of the original pictures.
    pub original_sizes: Vec<[u32; 2]>,
    /// `[B]` whether the picture is mirrored left and right.
    pub flipped: Vec<bool>,
    /// `[B]` false if the place only fills up the batch (end of an evaluation, or an unreadable picture).
    pub valid: Vec<bool>,
}

/// How much a [`Batch`] holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Pictures.
    pub batch: usize,
    /// Boxes per picture.
    pub max_gt: usize,
    /// Run ends of masks per picture; 0 for no masks.
    pub mask_runs: usize,
}

impl Batch {
    /// Number of places, valid or not.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Whether the batch has no places.
    pub fn is_empty(&self) -> bool {
        self.valid.is_empty()
    }

    /// Number of ground-truth boxes that each picture is padded to.
    pub fn max_gt(&self) -> usize {
        self.gt_labels.len().checked_div(self.len()).unwrap_or(0)
    }

    /// Makes room for batch `step` of `shape`, the shape with index `bucket`. Everything but the pixels starts empty.
    pub(super) fn reset(&mut self, step: u64, bucket: usize, shape: Shape, room: Room) {
        let Room { batch, max_gt, mask_runs } = room;
        fn fill<T: Clone>(v: &mut Vec<T>, n: usize, value: T) {
            v.clear();
            v.resize(n, value);
        }
        (self.step, self.bucket, self.height, self.width) = (step, bucket, shape.height, shape.width);
        // The pipeline writes every byte, so the pixels of a recycled batch need not be cleared.
        self.images.resize(batch * shape.pixels() as usize * 3, 0);
        fill(&mut self.sizes, batch * 4, 0.0);
        fill(&mut self.gt_boxes, batch * max_gt * 4, 0.0);
        fill(&mut self.gt_labels, batch * max_gt, -1);
        fill(&mut self.gt_count, batch, 0);
        fill(&mut self.gt_mask_runs, batch * mask_runs, i32::MAX);
        fill(&mut self.gt_mask_offsets, if mask_runs > 0 { batch * (max_gt + 1) } else { 0 }, 0);
        fill(&mut self.image_ids, batch, -1);
        fill(&mut self.indices, batch, 0);
        fill(&mut self.scale_factors, batch, [1.0; 2]);
        fill(&mut self.original_sizes, batch, [0; 2]);
        fill(&mut self.flipped, batch, false);
        fill(&mut self.valid, batch, false);
    }

    /// Number of run ends of masks that each picture is padded to; 0 if masks are off.
    pub fn mask_runs(&self) -> usize {
        self.gt_mask_runs.len().checked_div(self.len()).unwrap_or(0)
    }

    /// The pixels of place `slot`.
    pub(super) fn image_mut(&mut self, slot: usize) -> &mut [u8] {
        let n = self.height as usize * self.width as usize * 3;
        &mut self.images[slot * n..(slot + 1) * n]
    }
}
