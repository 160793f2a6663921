//! The batch of the step's benchmark: noise with boxes and ellipses in them, the same as
//! benches/peers/step_torchvision.py makes.

use upres::models::HostBatch;

/// Host data of one batch, in the layouts of [`HostBatch`].
pub struct Batch {
    images: Vec<u8>,
    sizes: Vec<[f32; 4]>,
    scale: Vec<[f32; 2]>,
    boxes: Vec<f32>,
    labels: Vec<i32>,
    count: Vec<i32>,
    runs: Vec<i32>,
    offsets: Vec<i32>,
    /// Slots for the runs of an image.
    pub room: usize,
}

impl Batch {
    /// `b` images of `h`×`w` with `objects` boxes each, 16 px to half the image, in `slots` rows.
    pub fn new(b: usize, [h, w]: [usize; 2], objects: usize, slots: usize, classes: usize) -> Batch {
        let (mut images, mut boxes, mut labels) = (Vec::new(), vec![0.0; b * slots * 4], vec![-1; b * slots]);
        let (mut of_images, mut offsets) = (Vec::new(), vec![0; b * (slots + 1)]);
        for i in 0..b {
            let noise = hash_uniform(&format!("bench.step.image{i}"), 3 * h * w);
            let byte = |at: usize| ((0.5 + 0.5 * noise[at]) * 255.0) as u8;
            images.extend((0..3 * h * w).map(|at| byte(at % 3 * h * w + at / 3))); // the noise is C, H, W
            let u = hash_uniform(&format!("bench.step.boxes{i}"), 4 * objects);
            let mut runs = Vec::new();
            for (j, u) in u.chunks(4).enumerate() {
                let u = [0, 1, 2, 3].map(|k| 0.5 + 0.5 * u[k]);
                let (bw, bh) = (16.0 + u[2] * (w as f32 / 2.0 - 16.0), 16.0 + u[3] * (h as f32 / 2.0 - 16.0));
                let (x, y) = (u[0] * (w as f32 - bw), u[1] * (h as f32 - bh));
                let bbox = [x, y, x + bw, y + bh];
                boxes[(i * slots + j) * 4..][..4].copy_from_slice(&bbox);
                labels[i * slots + j] = ((i * objects + j) % classes) as i32;
                ellipse(&mut runs, bbox, [h, w]);
                offsets[i * (slots + 1) + j + 1..(i + 1) * (slots + 1)].fill(runs.len() as i32);
            }
            of_images.push(runs);
        }
        let room = of_images.iter().map(Vec::len).max().unwrap_or(0).next_multiple_of(1024).max(1024);
        let mut runs = vec![i32::MAX; b * room];
        of_images
            .iter()
            .enumerate()
            .for_each(|(i, of_image)| runs[i * room..][..of_image.len()].copy_from_slice(of_image));
        let sizes = vec![[h as f32, w as f32, h as f32, w as f32]; b];
        let count = vec![objects as i32; b];
        Batch { images, sizes, scale: vec![[1.0; 2]; b], boxes, labels, count, runs, offsets, room }
    }

    /// What an engine's inputs load.
    pub fn host(&self) -> HostBatch<'_> {
        HostBatch {
            images: &self.images,
            sizes: &self.sizes,
            scale: &self.scale,
            gt_boxes: &self.boxes,
            gt_labels: &self.labels,
            gt_count: &self.count,
            mask_runs: &self.runs,
            mask_offsets: &self.offsets,
        }
    }
}

/// Adds the runs of the pixels with their centre in the box's ellipse.
fn ellipse(runs: &mut Vec<i32>, [x0, y0, x1, y1]: [f32; 4], [h, w]: [usize; 2]) {
    let (cx, cy, rx, ry) = ((x0 + x1) / 2.0, (y0 + y1) / 2.0, (x1 - x0) / 2.0, (y1 - y0) / 2.0);
    let set = |x: usize, y: usize| {
        let (dx, dy) = ((x as f32 + 0.5 - cx) / rx, (y as f32 + 0.5 - cy) / ry);
        dx * dx + dy * dy <= 1.0
    };
    for y in 0..h {
        // An ellipse has one span in a row.
        if let Some(start) = (0..w).find(|&x| set(x, y)) {
            let end = (start..w).find(|&x| !set(x, y)).unwrap_or(w);
            runs.extend([y * w + start, y * w + end].map(|at| at as i32));
        }
    }
}

/// The i-th number of a name, in (-1, 1): the rule of tests/fixtures/README.md.
fn hash_uniform(name: &str, n: usize) -> Vec<f32> {
    let h = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let number = |i: u64| {
        let mut z = h.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (2.0 * (z >> 40) as f64 + 1.0 - 16_777_216.0) as f32 / 16_777_216.0
    };
    (1..=n as u64).map(number).collect()
}
