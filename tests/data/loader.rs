//! The loader on small generated data sets: the contents of a batch, which depend only on seed, stage and step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use upres::data::loader::plan_batches;
use upres::data::{
    BadImages, Batch, ColourJitter, Dataset, EvalLoader, Geometry, ImageStore, Loader, LoaderOptions, Pipeline, Shape,
    TrainFilter,
};

/// Colour of class `k`'s boxes; the background is another.
const COLOURS: [[u8; 3]; 3] = [[250, 0, 0], [0, 250, 0], [0, 0, 250]];

/// Writes `n` images of three sizes, each with up to three boxes filled with their class's colour.
fn make(dir: &Path, n: usize) -> Dataset {
    let sizes = [(64, 48), (48, 64), (80, 48)];
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for i in 0..n {
        let (w, h) = sizes[i % 3];
        let mut data = [90, 90, (i * 5) as u8].repeat((w * h) as usize);
        let name = format!("{i}.png");
        for (k, colour) in COLOURS.iter().enumerate().take(i % 3 + 1) {
            let (x, y, bw, bh) = (4 + 14 * k as u32, 6 + 4 * k as u32, 12, 16);
            for yy in y..y + bh {
                for xx in x..x + bw {
                    let at = ((yy * w + xx) * 3) as usize;
                    data[at..at + 3].copy_from_slice(colour);
                }
            }
            let id = annotations.len() + 1;
            let bbox = [x, y, bw, bh];
            annotations
                .push(json!({"id": id, "image_id": i + 10, "category_id": k + 1, "bbox": bbox, "area": bw * bh}));
        }
        image::save_buffer(dir.join(&name), &data, w, h, image::ColorType::Rgb8).unwrap();
        images.push(json!({"id": i + 10, "file_name": name, "width": w, "height": h}));
    }
    let categories = json!([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]);
    let file = json!({"images": images, "annotations": annotations, "categories": categories});
    std::fs::write(dir.join("a.json"), file.to_string()).unwrap();
    Dataset::load(dir.join("a.json"), dir).unwrap()
}

fn store(dataset: &Dataset, bad: BadImages, cache: u64) -> Arc<ImageStore> {
    Arc::new(ImageStore::new(Arc::new(dataset.clone()), bad, cache))
}

fn batches(dataset: &Dataset, pipeline: Pipeline, options: LoaderOptions, n: usize, cache: u64) -> Vec<Batch> {
    let mut loader = Loader::new(store(dataset, BadImages::Fail, cache), pipeline, options).unwrap();
    let mut out = Vec::new();
    for _ in 0..n {
        let batch = loader.next().unwrap();
        out.push(batch.clone());
        loader.recycle(batch);
    }
    out
}

fn options() -> LoaderOptions {
    LoaderOptions { seed: 5, stage: 1, batch: 4, threads: 1, ..LoaderOptions::default() }
}

fn training(geometry: Geometry) -> Pipeline {
    Pipeline { geometry, flip: 0.5, vertical_flip: 0.0, colour: ColourJitter::default() }
}

fn crop() -> Pipeline {
    let geometry = Geometry::Fixed { shape: Shape::square(40), jitter: (0.8, 1.2) };
    Pipeline { vertical_flip: 0.5, ..training(geometry) }
}

fn keep_ratio() -> Pipeline {
    training(Geometry::finetune(96, 64))
}

/// Pixels of place `slot`.
fn pixels(batch: &Batch, slot: usize) -> &[u8] {
    let n = batch.height as usize * batch.width as usize * 3;
    &batch.images[slot * n..][..n]
}

#[test]
fn batches_do_not_depend_on_threads_cache_or_start() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 23);
    let colour = ColourJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.1 };
    for pipeline in [crop(), keep_ratio(), Pipeline { colour, ..crop() }] {
        let want = batches(&dataset, pipeline, options(), 17, 0);
        let many = LoaderOptions { threads: 4, prefetch: 5, ..options() };
        assert_eq!(want, batches(&dataset, pipeline, many, 17, 1 << 30), "four threads and a cache");
        for start in [1, 6, 11] {
            let late = LoaderOptions { start_step: start, threads: 2, ..options() };
            let n = want.len() - start as usize;
            assert_eq!(want[start as usize..], batches(&dataset, pipeline, late, n, 0), "from step {start}");
        }
        let other_seed = LoaderOptions { seed: 6, ..options() };
        let other_stage = LoaderOptions { stage: 2, ..options() };
        for o in [other_seed, other_stage] {
            assert_ne!(want[0].images, batches(&dataset, pipeline, o, 1, 0)[0].images);
        }
    }
}

/// The pixels in the middle of a box must have the colour of its class, whatever was scaled, cropped and mirrored.
fn check_boxes(batch: &Batch) -> usize {
    let mut boxes = 0;
    for slot in 0..batch.len() {
        let (h, w) = (batch.sizes[slot * 4], batch.sizes[slot * 4 + 1]);
        let n = batch.gt_count[slot] as usize;
        for k in 0..batch.max_gt() {
            let at = slot * batch.max_gt() + k;
            let b = &batch.gt_boxes[at * 4..at * 4 + 4];
            let label = batch.gt_labels[at];
            if k >= n {
                assert_eq!((b, label), (&[0.0; 4][..], -1), "padding");
                continue;
            }
            assert!(
                b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= w && b[3] <= h && b[0] < b[2] && b[1] < b[3],
                "{b:?} in {w}×{h}"
            );
            boxes += 1;
            // Later boxes cover earlier ones, and the middle of a sliver is blurred: only suitable boxes are checked.
            if label as usize + 1 < n || b[2] - b[0] < 5.0 || b[3] - b[1] < 5.0 {
                continue;
            }
            let (x, y) = ((b[0] + b[2]) as usize / 2, (b[1] + b[3]) as usize / 2);
            let p = &pixels(batch, slot)[(y * batch.width as usize + x) * 3..][..3];
            assert_eq!(p, COLOURS[label as usize], "image {} box {b:?}", batch.image_ids[slot]);
        }
        let image = pixels(batch, slot);
        for y in 0..batch.height as usize {
            for x in 0..batch.width as usize {
                if y >= h as usize || x >= w as usize {
                    assert_eq!(image[(y * batch.width as usize + x) * 3..][..3], [0; 3], "padding at {x},{y}");
                }
            }
        }
    }
    boxes
}

#[test]
fn boxes_follow_their_pixels() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 23);
    for pipeline in [crop(), keep_ratio()] {
        let all = batches(&dataset, pipeline, options(), 60, 0);
        let boxes: usize = all.iter().map(check_boxes).sum();
        assert!(boxes > 240, "every image keeps at least one box: {boxes}");
        assert!(all.iter().flat_map(|b| &b.gt_count).all(|n| *n > 0));
        let flipped = all.iter().flat_map(|b| &b.flipped).filter(|f| **f).count();
        assert!((80..160).contains(&flipped), "{flipped} of 240 mirrored");
    }
}

#[test]
fn fixed_crops_fill_their_square() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 23);
    for batch in batches(&dataset, crop(), options(), 30, 0) {
        assert_eq!((batch.height, batch.width, batch.bucket), (40, 40, 0));
        assert_eq!(batch.images.len(), 4 * 40 * 40 * 3);
        for slot in 0..4 {
            let [w, h] = batch.original_sizes[slot].map(|v| v as f32);
            let s = &batch.sizes[slot * 4..slot * 4 + 4];
            // Longer side: int(40 r) with r in [0.8, 1.2), cut to 40.
            assert!(s[0].max(s[1]) >= 32.0 && s[0].max(s[1]) <= 40.0);
            assert_eq!(s[2..], [40.0, 40.0]);
            let r = batch.scale_factors[slot];
            let long = w.max(h) * if w > h { r[0] } else { r[1] };
            assert!((32.0..48.0).contains(&long.round()), "{long}");
        }
    }
}

#[test]
fn an_epoch_has_every_image_once_and_batches_have_one_shape() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 23);
    for times in [1, 3] {
        let o = LoaderOptions { times, max_gt: 8, ..options() };
        let (steps, shapes) = plan_batches(&dataset, &keep_ratio(), &o).unwrap();
        assert!(shapes.len() > 1 && shapes.len() <= 4);
        let first = batches(&dataset, keep_ratio(), o, steps as usize, 0);
        let late = LoaderOptions { start_step: steps, ..o };
        let second = batches(&dataset, keep_ratio(), late, steps as usize, 0);
        assert_ne!(first[0].image_ids, second[0].image_ids, "a new order each epoch");
        for epoch in [first, second] {
            let mut seen: BTreeMap<i64, usize> = BTreeMap::new();
            let mut fill = vec![0; shapes.len()];
            for b in &epoch {
                assert_eq!(shapes[b.bucket], Shape { height: b.height, width: b.width });
                assert_eq!(b.valid, [true; 4]);
                fill[b.bucket] += 4;
                b.image_ids.iter().for_each(|id| *seen.entry(*id).or_default() += 1);
            }
            assert_eq!(seen.len(), 23);
            assert!(seen.values().all(|n| *n >= times));
            let repeated = seen.values().sum::<usize>() - 23 * times;
            assert!(repeated < 4 * shapes.len(), "only the last batch of a shape is filled up: {repeated}");
        }
    }
}

#[test]
fn bad_images_stop_or_are_replaced() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 12);
    std::fs::remove_file(dir.path().join("3.png")).unwrap();
    std::fs::write(dir.path().join("4.png"), b"\x89PNG\r\n\x1a\n broken").unwrap();
    image::save_buffer(dir.path().join("5.png"), &[0; 48 * 80 * 3], 48, 80, image::ColorType::Rgb8).unwrap();

    let mut loader = Loader::new(store(&dataset, BadImages::Fail, 0), keep_ratio(), options()).unwrap();
    let errors: Vec<String> = (0..8).filter_map(|_| loader.next().err()).map(|e| e.to_string()).collect();
    assert!(!errors.is_empty());
    for e in &errors {
        assert!(e.contains(".png: ") && !e.contains('\n'), "{e}");
    }

    let skipping = store(&dataset, BadImages::Skip, 0);
    for (threads, pipeline) in [(1, keep_ratio()), (4, keep_ratio()), (2, crop())] {
        let o = LoaderOptions { threads, ..options() };
        let mut loader = Loader::new(Arc::clone(&skipping), pipeline, o).unwrap();
        let got: Vec<Batch> = (0..20).map(|_| loader.next().unwrap()).collect();
        for b in &got {
            assert!(b.image_ids.iter().all(|id| ![13, 14, 15].contains(id)), "{:?}", b.image_ids);
            check_boxes(b);
        }
    }
    let skipped = skipping.skipped();
    let of: Vec<usize> = skipped.iter().map(|(i, _)| *i).collect();
    assert_eq!(of, [3, 4, 5]);
    assert!(skipped[0].1.contains("not found") && skipped[1].1.contains("corrupt"));
    assert!(skipped[2].1.contains("the sides are exchanged") && skipped[2].1.contains("image 15"), "{}", skipped[2].1);

    for i in 0..12 {
        let _ = std::fs::remove_file(dir.path().join(format!("{i}.png")));
    }
    let mut loader = Loader::new(store(&dataset, BadImages::Skip, 0), keep_ratio(), options()).unwrap();
    let e = loader.next().unwrap_err().to_string();
    assert!(e.contains("64 pictures drawn in a row cannot be read"), "{e}");
}

/// Once all pictures are decoded, nothing but the cache has them: the files are gone.
#[test]
fn the_cache_keeps_each_image() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 12);
    let bytes = dataset.images.iter().map(|i| u64::from(i.width * i.height * 3)).sum::<u64>();
    for (budget, cached) in [(bytes, true), (bytes - 1, false)] {
        let store = store(&dataset, BadImages::Fail, budget);
        let o = LoaderOptions { end_step: 12, ..options() };
        let mut loader = Loader::new(Arc::clone(&store), keep_ratio(), o).unwrap();
        (0..12).for_each(|_| drop(loader.next().unwrap()));
        assert!(loader.next().unwrap_err().to_string().contains("end_step"));
        let hidden = dir.path().join("hidden");
        let paths = || (0..12).map(|i| format!("{i}.png"));
        std::fs::create_dir_all(&hidden).unwrap();
        paths().for_each(|name| std::fs::rename(dir.path().join(&name), hidden.join(&name)).unwrap());
        let mut again = Loader::new(Arc::clone(&store), keep_ratio(), o).unwrap();
        assert_eq!((0..12).all(|_| again.next().is_ok()), cached);
        assert_eq!((0..12).all(|i| store.get(i).is_ok()), cached);
        drop(again);
        paths().for_each(|name| std::fs::rename(hidden.join(&name), dir.path().join(&name)).unwrap());
    }
}

#[test]
fn too_many_boxes_and_senseless_options_are_errors() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 12);
    assert_eq!(dataset.max_gt(), 8);
    let refused = |o: LoaderOptions, p: Pipeline| {
        Loader::new(store(&dataset, BadImages::Fail, 0), p, o).err().expect("an error").to_string()
    };
    let e = refused(LoaderOptions { max_gt: 2, ..options() }, crop());
    assert!(e.contains("image 12 (2.png) has 3 boxes") && e.contains("raise max_gt to 3"), "{e}");
    assert!(refused(LoaderOptions { batch: 0, ..options() }, crop()).contains("batch 0"));
    let jitter = Geometry::Fixed { shape: Shape::square(40), jitter: (1.2, 0.8) };
    assert!(refused(options(), training(jitter)).contains("jitter"));
    assert!(refused(options(), Pipeline { flip: f32::NAN, ..crop() }).contains("flip"));
    let filter = TrainFilter { min_image_size: 500, ..TrainFilter::default() };
    let e = refused(LoaderOptions { filter, ..options() }, crop());
    assert!(e.contains("no image to train on: of 12, 12 have a side below 500 pixels"), "{e}");
}

#[test]
fn evaluation_sees_every_image_once() {
    let dir = TempDir::new().unwrap();
    let dataset = make(dir.path(), 23);
    std::fs::remove_file(dir.path().join("7.png")).unwrap();
    let pipeline = Pipeline::test(Geometry::finetune(96, 64));
    let buckets = pipeline.buckets(&dataset, &(0..23).collect::<Vec<_>>(), 1);
    let members = |k: usize| buckets.of_image.iter().filter(|&&b| usize::from(b) == k).count();
    for (batch, threads) in [(1, 1), (4, 2), (5, 4)] {
        let mut loader = EvalLoader::new(store(&dataset, BadImages::Skip, 0), pipeline, batch, threads, 2).unwrap();
        let (mut ids, mut batches) = (Vec::new(), 0);
        while let Some(b) = loader.next().unwrap() {
            assert_eq!(b.len(), batch);
            assert_eq!(buckets.shapes[b.bucket], Shape { height: b.height, width: b.width });
            for slot in (0..b.len()).filter(|s| b.valid[*s]) {
                let [w, h] = b.original_sizes[slot];
                assert_eq!(b.sizes[slot * 4], (h as f32 * b.scale_factors[slot][1]).round());
                assert_eq!(b.sizes[slot * 4 + 1], (w as f32 * b.scale_factors[slot][0]).round());
                assert!(!b.flipped[slot]);
                ids.push(b.image_ids[slot]);
            }
            batches += 1;
            loader.recycle(b);
        }
        assert_eq!(batches, (0..buckets.shapes.len()).map(|k| members(k).div_ceil(batch)).sum::<usize>());
        ids.sort_unstable();
        let want: Vec<i64> = (10..33).filter(|id| *id != 17).collect();
        assert_eq!(ids, want);
    }
    let mut failing = EvalLoader::new(store(&dataset, BadImages::Fail, 0), pipeline, 4, 1, 2).unwrap();
    let error = (0..6).find_map(|_| failing.next().err()).unwrap();
    assert!(error.to_string().contains("7.png: image file not found"));
}

#[test]
fn images_without_boxes_take_part_when_wanted() {
    let dir = TempDir::new().unwrap();
    let mut dataset = make(dir.path(), 6);
    dataset.annotations[2].clear();
    let count = |filter| {
        let got = batches(&dataset, crop(), LoaderOptions { filter, ..options() }, 12, 0);
        got.iter().flat_map(|b| b.image_ids.clone()).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(count(TrainFilter::default()), 5);
    let filter = TrainFilter { empty_gt: false, ..TrainFilter::default() };
    assert_eq!(count(filter), 6);
    let got = batches(&dataset, crop(), LoaderOptions { filter, ..options() }, 12, 0);
    let empty = got.iter().flat_map(|b| b.image_ids.iter().zip(&b.gt_count)).filter(|(id, _)| **id == 12);
    assert!(empty.clone().count() > 4 && empty.clone().all(|(_, n)| *n == 0));
}
