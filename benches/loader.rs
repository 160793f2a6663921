//! Images per second of decoding, resizing and the whole loader on a data set:
//! `cargo bench --bench loader -- ANNOTATIONS IMAGES [LONG SHORT]`. Without arguments it prints this line.

use std::sync::Arc;
use std::time::Instant;

use upres::data::resize::{Scratch, Window, resize_window};
use upres::data::{BadImages, Dataset, Geometry, ImageStore, Loader, LoaderOptions, Pipeline, decode};

/// Best of some repetitions, as images per second.
fn rate(images: usize, repetitions: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..repetitions).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    images as f64 / seconds.fold(f64::INFINITY, f64::min)
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

    for (what, geometry) in [("keep ratio", Geometry::finetune(long, short)), ("crop", Geometry::pretrain(long))] {
        for (cache, bytes) in [("no cache", 0), ("cache", 4 << 30)] {
            for threads in [1, 2] {
                let store = Arc::new(ImageStore::new(Arc::clone(&dataset), BadImages::Fail, bytes));
                let options = LoaderOptions {
                    batch: 8,
                    max_gt: dataset.max_gt(),
                    threads,
                    prefetch: 4,
                    ..LoaderOptions::default()
                };
                let mut loader = Loader::new(store, Pipeline::train(geometry), options)?;
                let steps = loader.steps_per_epoch();
                let mut failed = None;
                let per_s = rate(steps as usize * 8, 4, || {
                    for _ in 0..steps {
                        match loader.next() {
                            Ok(batch) => loader.recycle(batch),
                            Err(e) => failed = Some(e),
                        }
                    }
                });
                if let Some(e) = failed {
                    return Err(e);
                }
                println!("loader, {what:<10} {cache:<8} {threads} thr {per_s:>6.0} images/s");
            }
        }
    }
    Ok(())
}
