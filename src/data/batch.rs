//! What a loader delivers.

use super::buckets::Shape;

/// Pictures and ground truth of one step, in plain vectors. `B` pictures of `H` × `W`, ground truth padded to `G`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Batch {
    /// Number of the batch, counted from 0 over the whole stage.
    pub step: u64,
    /// Index of the shape in [`Buckets::shapes`](super::buckets::Buckets::shapes).
    pub bucket: usize,
    /// Height and width.
    pub height: u32,
    /// Height and width.
    pub width: u32,
    /// `[B,H,W,3]` RGB, 0 outside the content.
    pub images: Vec<u8>,
    /// `[B,4]`: height and width of the content, height and width of its padded shape.
    pub sizes: Vec<f32>,
    /// `[B,G,4]` x0 y0 x1 y1 in pixels of the batch's pictures; 0 where there is no box.
    pub gt_boxes: Vec<f32>,
    /// `[B,G]` class index; -1 where there is no box.
    pub gt_labels: Vec<i32>,
    /// `[B]` number of boxes.
    pub gt_count: Vec<i32>,
    /// `[B,S]` masks of the ground truth, all of an image one after another: positions `y * W + x` where runs of pixels begin
    /// and end, ascending within an object; a pixel is set if an odd number of its object's are not behind it. Padded with
    /// `i32::MAX`. Empty where masks are off.
    pub gt_mask_runs: Vec<i32>,
    /// `[B,G+1]` object g owns `runs[offsets[g]..offsets[g + 1]]` of its image. Empty where masks are off.
    pub gt_mask_offsets: Vec<i32>,
    /// `[B]` ids of the annotation file.
    pub image_ids: Vec<i64>,
    /// `[B]` indices into the data set's images.
    pub indices: Vec<usize>,
    /// `[B,2]` horizontal and vertical scale: batch pixels = original pixels × scale (before crop and flip).
    pub scale_factors: Vec<[f32; 2]>,
    /// `[B,2]` width and height of the original pictures.
    pub original_sizes: Vec<[u32; 2]>,
    /// `[B]` mirrored left and right.
    pub flipped: Vec<bool>,
    /// `[B]` false where the place only fills the batch up (end of an evaluation, unreadable picture).
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
    /// Pictures in the batch, valid or not.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// Whether there is no place at all.
    pub fn is_empty(&self) -> bool {
        self.valid.is_empty()
    }

    /// Ground-truth boxes that each picture is padded to.
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
        // Every byte is written by the pipeline: no need to clear what a recycled batch held.
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

    /// Run ends of masks that each picture is padded to; 0 where masks are off.
    pub fn mask_runs(&self) -> usize {
        self.gt_mask_runs.len().checked_div(self.len()).unwrap_or(0)
    }

    pub(super) fn image_mut(&mut self, slot: usize) -> &mut [u8] {
        let n = self.height as usize * self.width as usize * 3;
        &mut self.images[slot * n..(slot + 1) * n]
    }
}
