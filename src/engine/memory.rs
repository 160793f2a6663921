//! Sizes of the memory that an engine keeps between steps, by kind. Main type: [`PersistentBytes`].

use serde::Serialize;

use super::Engine;
use crate::device::ALIGN_BYTES;
use crate::models::{Detections, Inputs, MaskInputs};
use crate::tensor::Tensor;

/// Bytes kept between steps, by kind. Their sum is the device's
/// [`persistent_bytes`](crate::device::Device::persistent_bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PersistentBytes {
    /// Parameters and running statistics.
    pub parameters: usize,
    /// Gradients of the parameters that are trained.
    pub gradients: usize,
    /// SGD's momentum, or AdamW's running means of gradients and of their squares.
    pub optimizer_state: usize,
    /// Running average of the weights.
    pub running_average: usize,
    /// Images and ground truth of every training and evaluation bucket.
    pub inputs: usize,
    /// Anchors of every training and evaluation bucket.
    pub anchors: usize,
    /// Detections of an evaluation pass.
    pub outputs: usize,
    /// Learning rate, losses and other numbers of a step.
    pub scalars: usize,
}

impl PersistentBytes {
    /// Each kind with its name.
    pub fn rows(&self) -> [(&'static str, usize); 8] {
        let &PersistentBytes {
            parameters,
            gradients,
            optimizer_state,
            running_average,
            inputs,
            anchors,
            outputs,
            scalars,
        } = self;
        [
            ("parameters", parameters),
            ("their gradients", gradients),
            ("optimizer state", optimizer_state),
            ("running average", running_average),
            ("inputs", inputs),
            ("anchors", anchors),
            ("evaluation outputs", outputs),
            ("numbers of a step", scalars),
        ]
    }

    /// The sum of all kinds.
    pub fn total(&self) -> usize {
        self.rows().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Engine {
    /// The memory that this engine keeps between steps of its stage.
    pub fn persistent_parts(&self) -> PersistentBytes {
        let Engine { store, stage, lr, correction, ema_share, norm, losses, .. } = self;
        let mut parts = PersistentBytes {
            parameters: sum(store.all().iter().map(|p| p.value().bytes())),
            gradients: flat(store.all().iter().filter_map(|p| p.grad().as_ref().map(Tensor::bytes))),
            scalars: sum([lr, correction, ema_share, norm].into_iter().chain(losses).map(Tensor::bytes)),
            ..PersistentBytes::default()
        };
        if let Some(stage) = stage {
            let (state, key) = stage.optimizer.bytes();
            parts.optimizer_state = state;
            parts.running_average = flat(stage.average.iter().map(Tensor::bytes));
            for inputs in stage.train.iter().chain(&stage.eval) {
                let (batch, anchors) = input_bytes(inputs);
                parts.inputs += batch;
                parts.anchors += anchors;
            }
            // Destructured without `..`, so that a new field does not compile until it is counted here.
            let Detections { boxes, scores, classes, masks, frame: _ } = &stage.outputs;
            parts.scalars += key + stage.loss_scale.as_ref().map_or(0, Tensor::bytes);
            parts.outputs = sum([boxes, scores, classes].into_iter().chain(masks).map(Tensor::bytes));
        }
        parts
    }
}

/// Bytes of the tensors that the host fills, and bytes of the anchors.
fn input_bytes(inputs: &Inputs) -> (usize, usize) {
    let Inputs { images, sizes, scale, gt_boxes, gt_labels, gt_count, masks, key, anchors } = inputs;
    let masks = masks.iter().flat_map(|MaskInputs { runs, offsets }| [runs, offsets]);
    let batch = [images, sizes, scale, gt_boxes, gt_labels, gt_count, key].into_iter().chain(masks);
    (sum(batch.map(Tensor::bytes)), anchors.boxes.bytes())
}

/// Sum of the sizes as [`Tensor::flat`] lays tensors out, each rounded up to the alignment.
fn flat(bytes: impl Iterator<Item = usize>) -> usize {
    sum(bytes.map(|bytes| bytes.next_multiple_of(ALIGN_BYTES)))
}

fn sum(bytes: impl Iterator<Item = usize>) -> usize {
    bytes.sum()
}
