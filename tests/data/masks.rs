//! Masks from the annotation file to batches: findings, buffer sizes, and that runs lie where the objects' pixels are.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use upres::data::check::check;
use upres::data::shapes::{ShapesOptions, generate};
use upres::data::{
    BadImages, Batch, ColourJitter, Dataset, EvalLoader, FindingKind, Geometry, ImageStore, Loader, LoaderOptions,
    Masks, Pipeline, ReadOptions, Severity, Shape, TrainFilter, run_capacity,
};

/// Colour of class `k`'s objects; the background is another.
const COLOURS: [[u8; 3]; 2] = [[250, 0, 0], [0, 250, 0]];

/// Writes `n` images with a disc (run lengths, as a list or in letters) and a triangle (polygon), in their class's
/// colour.
fn make(dir: &Path, n: usize) -> Value {
    let sizes = [(64u32, 48u32), (48, 64), (80, 48)];
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for i in 0..n {
        let (w, h) = sizes[i % 3];
        let name = format!("{i}.png");
        let disc = |x: u32, y: u32| (x as f32 - 15.5).hypot(y as f32 - 14.5) < 11.0;
        let triangle = [26.0, 40.0, 44.0, 40.0, 44.0, 16.0];
        let filled = hotcoco::mask::decode(&hotcoco::mask::fr_poly(&triangle, h, w).unwrap());
        let columns: Vec<u8> = (0..w * h).map(|p| u8::from(disc(p / h, p % h))).collect();
        let rle = hotcoco::mask::encode(&columns, h, w).unwrap();
        let mut data = Vec::new();
        for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
            let at = (x * h + y) as usize;
            data.extend(if filled[at] != 0 {
                COLOURS[1]
            } else if columns[at] != 0 {
                COLOURS[0]
            } else {
                [90; 3]
            });
        }
        image::save_buffer(dir.join(&name), &data, w, h, image::ColorType::Rgb8).unwrap();
        images.push(json!({"id": i + 10, "file_name": name, "width": w, "height": h}));
        let counts = if i % 2 == 0 { json!(rle.counts) } else { json!(hotcoco::mask::rle_to_string(&rle)) };
        annotations.push(json!({"id": 2 * i + 1, "image_id": i + 10, "category_id": 1, "bbox": [4, 4, 23, 22],
            "area": 380, "segmentation": {"size": [h, w], "counts": counts}}));
        annotations.push(json!({"id": 2 * i + 2, "image_id": i + 10, "category_id": 2, "bbox": [26, 16, 18, 24],
            "area": 216, "segmentation": [triangle]}));
    }
    let categories = json!([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]);
    json!({"images": images, "annotations": annotations, "categories": categories})
}

fn load(dir: &Path, file: &Value, masks: Masks) -> upres::Result<Dataset> {
    std::fs::write(dir.join("a.json"), file.to_string()).unwrap();
    Dataset::load_with(dir.join("a.json"), dir, ReadOptions { masks, ..ReadOptions::default() })
}

fn start(dataset: &Dataset, pipeline: Pipeline, options: LoaderOptions) -> upres::Result<Loader> {
    Loader::new(Arc::new(ImageStore::new(Arc::new(dataset.clone()), BadImages::Fail, 0)), pipeline, options)
}

fn batches(dataset: &Dataset, pipeline: Pipeline, options: LoaderOptions, n: usize) -> Vec<Batch> {
    let mut loader = start(dataset, pipeline, options).unwrap();
    (0..n)
        .map(|_| {
            let batch = loader.next().unwrap();
            let copy = batch.clone();
            loader.recycle(batch);
            copy
        })
        .collect()
}

fn options(dataset: &Dataset, pipeline: &Pipeline) -> LoaderOptions {
    let mask_runs = run_capacity(dataset, pipeline);
    LoaderOptions { seed: 5, batch: 4, threads: 1, mask_runs, ..LoaderOptions::default() }
}

fn pipelines() -> [Pipeline; 3] {
    let flips = |geometry| Pipeline { vertical_flip: 0.5, ..training(geometry) };
    [flips(square(40)), flips(square(150)), flips(Geometry::finetune(96, 64))]
}

fn training(geometry: Geometry) -> Pipeline {
    Pipeline { geometry, flip: 0.5, vertical_flip: 0.0, colour: ColourJitter::default() }
}

fn square(side: u32) -> Geometry {
    Geometry::Fixed { shape: Shape::square(side), jitter: (0.8, 1.2) }
}

/// Run ends of the mask of object `g` of place `slot`.
fn mask(batch: &Batch, slot: usize, g: usize) -> &[i32] {
    let offsets = &batch.gt_mask_offsets[slot * (batch.max_gt() + 1) + g..][..2];
    &batch.gt_mask_runs[slot * batch.mask_runs()..][offsets[0] as usize..offsets[1] as usize]
}

#[test]
fn masks_follow_their_pixels() {
    let dir = TempDir::new().unwrap();
    let dataset = load(dir.path(), &make(dir.path(), 12), Masks::Train).unwrap();
    assert!(dataset.findings.groups().next().is_none(), "{}", dataset.findings);
    // The smaller the objects, the larger the share of their blurred borders.
    for (pipeline, least) in pipelines().into_iter().zip([0.9, 0.97, 0.95]) {
        let (mut objects, mut right, mut pixels) = (0, 0, 0);
        for batch in batches(&dataset, pipeline, options(&dataset, &pipeline), 9) {
            let (w, g, s) = (batch.width as i32, batch.max_gt(), batch.mask_runs());
            assert_eq!((batch.gt_mask_runs.len(), batch.gt_mask_offsets.len()), (4 * s, 4 * (g + 1)));
            assert!(s > 0 && s.is_multiple_of(1024));
            for slot in 0..batch.len() {
                let offsets = &batch.gt_mask_offsets[slot * (g + 1)..(slot + 1) * (g + 1)];
                let (n, end) = (batch.gt_count[slot] as usize, offsets[g] as usize);
                assert!(offsets[0] == 0 && offsets.is_sorted() && offsets[n..].iter().all(|&o| o as usize == end));
                let runs = &batch.gt_mask_runs[slot * s..(slot + 1) * s];
                assert!(runs[..end].iter().all(|&r| (0..=w * batch.height as i32).contains(&r)));
                assert!(runs[end..].iter().all(|&r| r == i32::MAX), "padding");
                for object in 0..g {
                    let mask = mask(&batch, slot, object);
                    assert!(mask.is_sorted() && mask.len().is_multiple_of(2) && (object < n || mask.is_empty()));
                    let label = batch.gt_labels[slot * g + object];
                    let b = &batch.gt_boxes[(slot * g + object) * 4..][..4];
                    objects += usize::from(!mask.is_empty());
                    for [a, end] in mask.as_chunks::<2>().0 {
                        let y = a / w;
                        assert!(a < end && (end - 1) / w == y);
                        let (x0, x1) = ((a % w) as f32, (end - y * w) as f32);
                        assert!(x0 >= b[0] - 4.0 && x1 <= b[2] + 4.0, "{x0} {x1} {b:?}");
                        assert!(y as f32 >= b[1] - 4.0 && y as f32 + 1.0 <= b[3] + 4.0, "{y} {b:?}");
                        for p in *a..*end {
                            // Triangles cover discs, and resizing blurs borders.
                            let near = |c: [u8; 3]| {
                                let at = (slot * (w * batch.height as i32) as usize + p as usize) * 3;
                                let at = &batch.images[at..at + 3];
                                at.iter().zip(c).all(|(&p, c)| p.abs_diff(c) < 100)
                            };
                            right += u32::from(near(COLOURS[label as usize]) || near(COLOURS[1]));
                            pixels += 1;
                        }
                    }
                }
            }
        }
        assert!(objects > 36 && f64::from(right) > least * f64::from(pixels), "{objects}: {right} of {pixels}");
    }
}

#[test]
fn batches_with_masks_do_not_depend_on_threads_or_start() {
    let dir = TempDir::new().unwrap();
    let dataset = load(dir.path(), &make(dir.path(), 12), Masks::Train).unwrap();
    for pipeline in pipelines() {
        let one = options(&dataset, &pipeline);
        let want = batches(&dataset, pipeline, one, 9);
        assert_eq!(want, batches(&dataset, pipeline, LoaderOptions { threads: 4, prefetch: 5, ..one }, 9));
        assert_eq!(want[4..], batches(&dataset, pipeline, LoaderOptions { start_step: 4, threads: 2, ..one }, 5));
        // Apart from the masks, the batches are equal to those without.
        let off = batches(&dataset, pipeline, LoaderOptions { mask_runs: 0, ..one }, 9);
        for (mut with, without) in want.into_iter().zip(off) {
            assert!(without.gt_mask_runs.is_empty() && without.gt_mask_offsets.is_empty());
            (with.gt_mask_runs, with.gt_mask_offsets) = (Vec::new(), Vec::new());
            assert_eq!(with, without);
        }
    }
    let store = Arc::new(ImageStore::new(Arc::new(dataset.clone()), BadImages::Fail, 0));
    let mut eval = EvalLoader::new(store, Pipeline::test(Geometry::finetune(96, 64)), 2, 1, 1).unwrap();
    assert!(eval.next().unwrap().unwrap().gt_mask_offsets.is_empty());
}

#[test]
fn too_little_room_and_objects_without_masks_are_refused() {
    let dir = TempDir::new().unwrap();
    let mut file = make(dir.path(), 6);
    let dataset = load(dir.path(), &file, Masks::Train).unwrap();
    let pipeline = pipelines()[1];
    let refused = |dataset: &Dataset, mask_runs| {
        let options = LoaderOptions { mask_runs, ..options(dataset, &pipeline) };
        start(dataset, pipeline, options).err().expect("an error").to_string()
    };
    let e = refused(&dataset, 7);
    assert!(e.contains("mask_runs 7: want 1024 or more"), "{e}");
    file["annotations"][2].as_object_mut().unwrap().remove("segmentation");
    let dataset = load(dir.path(), &file, Masks::Read).unwrap();
    assert!(dataset.annotations[1][0].usable);
    let e = refused(&dataset, 1024);
    assert!(e.contains("image 11 (1.png) has objects without a mask"), "{e}");
    // When masks are trained, it is left out.
    let dataset = load(dir.path(), &file, Masks::Train).unwrap();
    assert!(!dataset.annotations[1][0].usable && dataset.annotations[1][1].usable);
    assert!(start(&dataset, pipeline, options(&dataset, &pipeline)).is_ok());
}

/// The buffer grows with the scale and with the contents of a picture, and with nothing else.
#[test]
fn room_follows_from_rows_and_scale() {
    let dir = TempDir::new().unwrap();
    let stripes: Vec<u32> = [vec![0], vec![1; 400 * 400]].concat();
    let mut file = make(dir.path(), 1);
    file["images"][0] = json!({"id": 10, "file_name": "0.png", "width": 400, "height": 400});
    file["annotations"][0]["segmentation"] = json!({"size": [400, 400], "counts": stripes});
    file["annotations"][1].as_object_mut().unwrap().remove("segmentation");
    let dataset = load(dir.path(), &file, Masks::Train).unwrap();
    // Rows 0, 2, … are set from end to end: two run ends each, 400 in all, falling by 2 after each of 200 rows.
    let rows = dataset.annotations[0][0].segmentation.as_ref().unwrap().row_toggles();
    assert_eq!((rows.all, rows.falls), (400, 400));
    let room = |side| run_capacity(&dataset, &Pipeline::test(square(side)));
    assert_eq!([room(200), room(400), room(4000)], [1024, 1024, 5120]);
}

fn check_kinds(dir: &Path, file: &Value) -> Vec<(FindingKind, usize)> {
    std::fs::write(dir.join("a.json"), file.to_string()).unwrap();
    let report = check(&dir.join("a.json"), dir, 5).unwrap();
    assert!(!report.is_fatal());
    report.dataset.findings.groups().map(|(k, g)| (k, g.count)).collect()
}

#[test]
fn bad_masks_are_found_and_left_out_of_mask_training_only() {
    use FindingKind::*;
    let dir = TempDir::new().unwrap();
    let mut file = make(dir.path(), 6);
    std::fs::write(dir.path().join("a.json"), file.to_string()).unwrap();
    let text = check(&dir.path().join("a.json"), dir.path(), 5).unwrap().to_string();
    assert!(text.contains("12 masks: 6 of polygons, 6 of run lengths") && text.contains("ready to train"), "{text}");
    for (i, bad) in [
        json!([[1, 2, 3, 4]]),
        json!([[26, 40, 44, 40, 44, 16], [1, 2, 3]]),
        json!([[1, 2, null, 4, 5, 6]]),
        json!({"size": [64, 48], "counts": [48 * 64]}),
        json!({"size": [64, 48], "counts": [80 * 48]}),
        json!({"size": [48, 80], "counts": "~~~~~"}),
        json!("a.png"),
        json!([[-9, -9, -2, -9, -2, -2]]),
    ]
    .into_iter()
    .enumerate()
    {
        file["annotations"][i]["segmentation"] = bad;
    }
    file["annotations"][8].as_object_mut().unwrap().remove("segmentation");
    file["annotations"][9]["segmentation"] = json!(null);
    let found = check_kinds(dir.path(), &file);
    let want = [
        (MissingMask, 2),
        (BadMask, 1),
        (ShortPolygon, 2),
        (NonFinitePolygon, 1),
        (MaskSize, 1),
        (BadRle, 1),
        (EmptyMask, 2),
    ];
    assert_eq!(found, want);
    assert!(want.iter().all(|w| w.0.severity() == Severity::Warning));
    let used = |d: &Dataset| (0..d.images.len()).map(|i| d.ground_truth(i).count()).sum::<usize>();
    assert_eq!(used(&load(dir.path(), &file, Masks::Skip).unwrap()), 12);
    assert_eq!(used(&load(dir.path(), &file, Masks::Read).unwrap()), 12);
    let trained = load(dir.path(), &file, Masks::Train).unwrap();
    assert!((0..6).flat_map(|i| trained.ground_truth(i)).all(|a| a.segmentation.is_some()));
    let text = trained.summary().to_string();
    assert!(text.contains("annotation without `segmentation` (first: annotation 9, image 14 (4.png))"), "{text}");
    assert!(text.contains("not used where masks are trained"), "{text}");
    let note = trained.training_note(TrainFilter::default()).unwrap();
    let want = "7 of 12 annotations and 2 of 6 images are not used (2 × annotation without `segmentation`, 1 × ";
    assert!(note.starts_with(want) && note.contains(", 2 others): `dataset check"), "{note}");
    let read = load(dir.path(), &file, Masks::Read).unwrap();
    assert_eq!((read.training_note(TrainFilter::default()), read.evaluation_note()), (None, None), "boxes are there");
    assert!(read.mask_note().unwrap().starts_with("7 of 12 objects have no usable mask"));
}

/// A polygon far from its box, one that no canvas holds, and run lengths outside their box: each is reported, and no
/// good one.
#[test]
fn masks_that_are_elsewhere_are_found() {
    use FindingKind::*;
    let dir = TempDir::new().unwrap();
    let whole = make(dir.path(), 6);
    let found = |index: usize, key: &str, value: Value| {
        let mut file = whole.clone();
        file["annotations"][index][key] = value;
        std::fs::write(dir.path().join("a.json"), file.to_string()).unwrap();
        let report = check(&dir.path().join("a.json"), dir.path(), 5).unwrap();
        let text = report.to_string();
        assert!(
            text.contains(&format!("annotation {}, image", index + 1)) && text.contains("usable: 1 warn"),
            "{text}"
        );
        (report.dataset.findings.groups().map(|(k, g)| (k, g.count)).collect::<Vec<_>>(), text)
    };
    let triangle = |x: f64| json!([[x, 16, 46, 16, 46, 30], [26, 40, 44, 40, 44, 16]]);
    let (kinds, text) = found(1, "segmentation", json!([[1, 1, 9, 1, 9, 9]]));
    assert_eq!(kinds, [(MaskOutsideBox, 1)]);
    assert!(text.contains("from (1, 1) to (9, 9), bbox [26.0, 16.0, 18.0, 24.0]"), "{text}");
    assert_eq!(found(1, "segmentation", triangle(45.5)).0, [(MaskOutsideBox, 1)], "one of two polygons");
    let (kinds, text) = found(1, "segmentation", triangle(1e300));
    assert_eq!(kinds, [(NonFinitePolygon, 1)]);
    assert!(text.contains("coordinate 1e300"), "{text}");
    assert_eq!(found(0, "bbox", json!([40, 30, 5, 5])).0, [(MaskOutsideBox, 1)], "run lengths");
    // An object that is dropped has no mask to train on either.
    let (kinds, text) = found(1, "bbox", json!([26, 16, -18, 24]));
    assert_eq!(kinds, [(NegativeBox, 1)]);
    assert!(text.contains("11 boxes to train on") && text.contains("11 masks: 5 of polygons, 6 of"), "{text}");
}

#[test]
fn boxes_alone_are_a_data_set_but_not_of_masks() {
    let dir = TempDir::new().unwrap();
    let mut file = make(dir.path(), 3);
    for a in file["annotations"].as_array_mut().unwrap() {
        a.as_object_mut().unwrap().remove("segmentation");
    }
    assert_eq!(check_kinds(dir.path(), &file), [(FindingKind::NoMasks, 1)]);
    assert_eq!(FindingKind::NoMasks.severity(), Severity::Info);
    let e = load(dir.path(), &file, Masks::Train).unwrap_err().to_string();
    assert!(e.contains("no object has a usable `segmentation`"), "{e}");
    assert!(load(dir.path(), &file, Masks::Read).is_ok());
}

/// The masks of the built-in data set come back as large and as tight as drawn: their polygons keep an IoU of 0.97.
#[test]
fn shapes_have_the_masks_that_were_drawn() {
    let dir = TempDir::new().unwrap();
    let made = ShapesOptions { train: 24, val: 0, ..ShapesOptions::default() };
    generate(dir.path(), &made).unwrap();
    let (file, images) = (dir.path().join("annotations/train.json"), dir.path().join("images/train"));
    let options = ReadOptions { masks: Masks::Train, ..ReadOptions::default() };
    let dataset = Dataset::load_with(&file, &images, options).unwrap();
    assert!(dataset.findings.groups().all(|(k, _)| k.severity() == Severity::Info), "{}", dataset.findings);
    let (mut n, mut off, mut worst) = (0.0, 0.0, 0.0f64);
    for (image, list) in dataset.images.iter().zip(&dataset.annotations) {
        for a in list {
            let (mut counts, h) = (Vec::new(), image.height);
            a.segmentation.as_ref().unwrap().counts((image.width, h), &mut counts);
            let rle = hotcoco::Rle { h, w: image.width, counts };
            let [x, y, w, h] = hotcoco::mask::to_bbox(&rle);
            let inside = x >= a.bbox[0] - 1.0 && y >= a.bbox[1] - 1.0;
            let tight = (w - a.bbox[2]).abs() <= 3.0 && (h - a.bbox[3]).abs() <= 3.0;
            assert!(inside && tight, "annotation {}: {:?} {:?}", a.id, [x, y, w, h], a.bbox);
            let part = (hotcoco::mask::area(&rle) as f64 / a.area - 1.0).abs();
            worst = worst.max(part);
            off += part;
            n += 1.0;
        }
    }
    assert!(n > 50.0 && off / n < 0.02 && worst < 0.1, "{n}: mean {}, worst {worst}", off / n);
    let pipeline = training(square(128));
    assert!(start(&dataset, pipeline, options_of(&dataset, &pipeline)).unwrap().next().unwrap().mask_runs() >= 1024);
}

fn options_of(dataset: &Dataset, pipeline: &Pipeline) -> LoaderOptions {
    LoaderOptions { max_gt: dataset.max_gt(), ..options(dataset, pipeline) }
}
