//! Images per second of decoding, resizing and the whole loader on a data set, and the time and room that its masks
//! take: `cargo bench --bench loader -- ANNOTATIONS IMAGES [LONG SHORT]`. Without arguments it prints this line.

use std::sync::Arc;
use std::time::Instant;

use upres::data::loader::plan_batches;
use upres::data::masks::MaskMap;
use upres::data::pipeline::Draws;
use upres::data::resize::{Scratch, Window, resize_window};
use upres::data::toggles::MaskScratch;
use upres::data::{
    BadImages, ColourJitter, Dataset, Geometry, ImageStore, Loader, LoaderOptions, Masks, Pipeline, ReadOptions, Shape,
    decode, run_capacity,
};

/// Best of some repetitions, as images per second.
fn rate(images: usize, repetitions: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..repetitions).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    images as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// A square that large pictures are cropped to.
fn crop(side: u32) -> Geometry {
    Geometry::Fixed { shape: Shape::square(side), jitter: (0.8, 1.2) }
}

/// Mirrors half of the pictures.
fn training(geometry: Geometry) -> Pipeline {
    Pipeline { geometry, flip: 0.5, vertical_flip: 0.0, colour: ColourJitter::default() }
}

/// Reading masks, the room they need in batches, and drawing them.
fn masks(annotations: &str, images: &str, long: u32, short: u32) -> upres::Result<Option<Arc<Dataset>>> {
    let read = |masks| Dataset::read(annotations, images, ReadOptions { masks, ..ReadOptions::default() });
    let time_ms = |masks| 1e3 / rate(1, 5, || drop(std::hint::black_box(read(masks))));
    let (without_ms, with_ms) = (time_ms(Masks::Skip), time_ms(Masks::Train));
    let dataset = read(Masks::Train)?;
    let all: Vec<_> = dataset.annotations.iter().flatten().filter_map(|a| a.segmentation.as_ref()).collect();
    if all.is_empty() {
        return Ok(None);
    }
    let kib = all.iter().map(|m| m.bytes()).sum::<usize>() / 1024;
    let n = all.len();
    println!("{n} masks, {kib} KiB             reading takes {with_ms:.0} ms, without masks {without_ms:.0} ms");
    let geometries = [("pre-train 448", crop(448)), ("keep ratio", Geometry::finetune(long, short))];
    for (what, geometry) in geometries {
        let pipeline = training(geometry);
        let start = Instant::now();
        let room = run_capacity(&dataset, &pipeline);
        let room_ms = start.elapsed().as_secs_f64() * 1e3;
        let (mut scratch, mut map, mut out) = (MaskScratch::default(), MaskMap::default(), vec![0; room]);
        let (mut toggles, mut most) = (0, 0);
        let per_s = rate(n, 5, || {
            (toggles, most) = (0, 0);
            for (i, image) in dataset.images.iter().enumerate() {
                let mut draws = Draws::new(1, 0, i as u64, 0);
                let shape = Shape::square(448.max(long));
                let placement = pipeline.place((image.width, image.height), shape, &mut draws);
                map.set((image.width, image.height), &placement.window);
                let of_image: usize = dataset
                    .ground_truth(i)
                    .filter_map(|a| a.segmentation.as_ref())
                    .map(|m| scratch.draw(m, &map, shape.width, &mut out))
                    .sum();
                toggles += of_image;
                most = most.max(of_image);
            }
        });
        println!(
            "masks, {what:<14} {:>6.1} µs each on one core, {:.0} run ends; at most {most} an image, room for {room} \
             (found in {room_ms:.1} ms)",
            1e6 / per_s,
            toggles as f64 / n as f64
        );
    }
    Ok(Some(Arc::new(dataset)))
}

fn main() -> upres::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let (annotations, images) = match args.as_slice() {
        [a, i, ..] => (a, i),
        _ => {
            println!("usage: cargo bench --bench loader -- ANNOTATIONS IMAGES [LONG SHORT]");
            return Ok(());
        }
    };
    let side = |i: usize, default: u32| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (long, short) = (side(2, 320), side(3, 240));
    let with_masks = masks(annotations, images, long, short)?;
    let dataset = Arc::new(Dataset::load(annotations, images)?);
    let n = dataset.images.len().min(100);
    println!("{}: first {n} images, best of many", dataset.path.display());

    let files: Vec<Vec<u8>> = (0..n).map(|i| std::fs::read(dataset.image_path(i)).expect("image file")).collect();
    let decoded: Vec<_> = files.iter().map(|f| decode::decode_bytes(f).expect("image")).collect();
    let per_s = rate(n, 20, || files.iter().for_each(|f| drop(std::hint::black_box(decode::decode_bytes(f)))));
    println!("decode                        {per_s:>8.0} images/s on one core");

    let mut scratch = Scratch::default();
    for (what, flip_x) in [("resize", false), ("resize and flip", true)] {
        let mut out = vec![0; long as usize * long as usize * 3];
        let per_s = rate(n, 40, || {
            for image in &decoded {
                let (w, h) = (f64::from(image.width), f64::from(image.height));
                let f = (f64::from(long) / w.max(h)).min(f64::from(short) / w.min(h));
                let resized = ((w * f + 0.5) as u32, (h * f + 0.5) as u32);
                let window = Window { resized, at: (0, 0), size: resized, flip_x, flip_y: false };
                resize_window(image, &window, &mut out, long as usize, &mut scratch);
            }
        });
        println!("{what:<29} {per_s:>8.0} images/s on one core, {long}×{short}");
    }

    let sets = [("boxes", Some(dataset)), ("masks", with_masks)];
    for (truth, dataset) in sets.into_iter().filter_map(|(truth, d)| Some((truth, d?))) {
        for (what, geometry) in [("keep ratio", Geometry::finetune(long, short)), ("crop", crop(long))] {
            for (cache, bytes, threads) in
                [("no cache", 0, 1), ("no cache", 0, 2), ("cache", 4 << 30, 1), ("cache", 4 << 30, 2)]
            {
                let per_s = loader(&dataset, training(geometry), truth == "masks", bytes, threads)?;
                println!("loader, {truth}, {what:<10} {cache:<8} {threads} thr {per_s:>6.0} images/s");
            }
        }
    }
    Ok(())
}

/// Images per second of a loader.
fn loader(dataset: &Arc<Dataset>, pipeline: Pipeline, masks: bool, cache: u64, threads: usize) -> upres::Result<f64> {
    let store = Arc::new(ImageStore::new(Arc::clone(dataset), BadImages::Fail, cache));
    let options = LoaderOptions {
        batch: 8,
        max_gt: dataset.max_gt(),
        mask_runs: if masks { run_capacity(dataset, &pipeline) } else { 0 },
        threads,
        prefetch: 4,
        ..LoaderOptions::default()
    };
    let mut loader = Loader::new(store, pipeline, options)?;
    let (steps, _) = plan_batches(dataset, &pipeline, &options)?;
    let mut failed = None;
    let per_s = rate(steps as usize * 8, 4, || {
        for _ in 0..steps {
            match loader.next() {
                Ok(batch) => loader.recycle(batch),
                Err(e) => failed = Some(e),
            }
        }
    });
    failed.map_or(Ok(per_s), Err)
}
