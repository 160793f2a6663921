//! The report of a run is complete, and needs nothing but its own file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use upres::data::draw::DrawnObject;
use upres::data::shapes::{Class, ShapesOptions, Split, render};
use upres::philox::{Purpose, Stream};
use upres::report::pictures::{Example, save_examples};
use upres::report::write_report;
use upres::run::event::{End, Eval, Event, Stage, Start, Train};

/// Writes a run of two stages (or one) as the training loop would; `pace` is how fast AP rises.
fn write_run(dir: &Path, stages: &[(&str, u64)], seed: u64, pace: f64) {
    fs::create_dir_all(dir).unwrap();
    let mut rng = Stream::new(seed, 0, 0, 0, Purpose::Test).rng();
    let start = Start {
        recipe_crc32c: 0,
        version: "0.1.0".into(),
        recipe: "shapes".into(),
        seed,
        device: "cpu".into(),
        threads: 2,
        classes: Class::ALL.map(|c| c.name().to_string()).to_vec(),
        parameters: 1_500_000,
        resumed_at: None,
        left_out: Vec::new(),
    };
    let mut events = vec![Event::Start(start)];
    let (mut global_step, mut time_s, mut last) = (0, 0.0, None);
    for (stage_index, &(stage, steps)) in stages.iter().enumerate() {
        let stage = stage.to_string();
        events.push(Event::Stage(Stage {
            stage: stage.clone(),
            stage_index,
            stages: stages.len(),
            steps,
            steps_per_epoch: 40,
            total_steps: 600,
            images: 600,
            buckets: vec![[128, 128]],
            persistent_bytes: 100 << 20,
            arena_bytes: 200 << 20,
            global_step,
        }));
        for step in (5..=steps).step_by(5) {
            global_step += 5;
            time_s += 1.5;
            let noise = 1.0 + 0.3 * f64::from(rng.uniform());
            let level =
                noise * (0.3 + 2.0 / (1.0 + 0.02 * global_step as f64)) * if global_step == 5 { 40.0 } else { 1.0 };
            let parts = [("rpn_cls", 0.2), ("rpn_box", 0.1), ("roi_cls", 0.4), ("roi_box", 0.3)];
            let mut losses: BTreeMap<String, f64> = parts.iter().map(|(k, v)| (k.to_string(), v * level)).collect();
            losses.insert("loss".into(), level);
            events.push(Event::Train(Train {
                stage: stage.clone(),
                stage_index,
                step,
                global_step,
                epoch: step as f64 / 40.0,
                lr: 0.02 * (step as f64 / 50.0).min(1.0) * if step > steps * 3 / 4 { 0.1 } else { 1.0 },
                losses,
                grad_norm: 3.0 * noise,
                images_per_s: 20.0 + noise,
                data_wait: 0.02,
                time_s,
                memory_bytes: 300 << 20,
                skipped_steps: 0,
            }));
            if step % 40 == 0 || step == steps {
                let ap = 0.8 * (1.0 - 1.0 / (1.0 + pace * time_s / 60.0)) * (0.95 + 0.1 * f64::from(rng.uniform()));
                let metrics =
                    [("bbox_ap", ap), ("bbox_ap50", 1.3 * ap), ("bbox_ap75", 0.9 * ap), ("bbox_ap_large", -1.0)];
                let eval = Eval {
                    stage: stage.clone(),
                    stage_index,
                    split: "val".into(),
                    step,
                    global_step,
                    epoch: step as f64 / 40.0,
                    time_s,
                    metrics: metrics.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
                    per_class: Class::ALL.iter().map(|c| (c.name().to_string(), ap)).collect(),
                };
                events.push(Event::Eval(eval.clone()));
                last = Some(eval);
            }
        }
    }
    events.push(Event::End(End { reason: "done".into(), global_step, time_s, data_wait: 0.02 }));
    let lines: String = events.iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect();
    fs::write(dir.join("log.jsonl"), lines).unwrap();
    let last = last.unwrap();
    let metrics = serde_json::json!({ "val": { "metrics": last.metrics, "per_class": last.per_class } });
    fs::write(dir.join("metrics.json"), metrics.to_string()).unwrap();
    let recipe = "name = \"shapes & more\"\nseed = 1\n\n[expect]\nbbox_ap = 60.0\nbbox_ap50 = 99.9\nwindow = 0.5\n";
    fs::write(dir.join("recipe.toml"), recipe).unwrap();
}

fn examples(dir: &Path) {
    let examples: Vec<Example> = (0..4)
        .map(|i| {
            let p = render(&ShapesOptions::default(), Split::Val, i).unwrap();
            let object = |s: &upres::data::shapes::VisibleShape, score, masks: bool| DrawnObject {
                bbox: s.bbox,
                class: s.class as usize,
                score,
                polygons: if masks { s.polygons.clone() } else { Vec::new() },
                note: "",
            };
            Example {
                name: format!("{i}.png"),
                image: image::RgbImage::from_raw(p.width as u32, p.height as u32, p.rgb).unwrap(),
                truth: p.shapes.iter().map(|s| object(s, None, true)).collect(),
                found: p.shapes.iter().map(|s| object(s, Some(0.9), false)).collect(),
            }
        })
        .collect();
    save_examples(dir, &examples, &Class::ALL.map(|c| c.name().to_string())).unwrap();
}

/// Writes a full report in a folder of its own, with the runs that it is compared with.
fn full(root: &Path) -> PathBuf {
    let run = root.join("two_stage-1");
    let mut others = Vec::new();
    for seed in 1..=3 {
        let (two, one) = (root.join(format!("two_stage-{seed}")), root.join(format!("one_stage-{seed}")));
        write_run(&two, &[("pretrain", 400), ("finetune", 200)], seed, 2.0);
        write_run(&one, &[("scratch", 600)], seed, 1.0);
        others.extend([two, one]);
    }
    examples(&run);
    write_report(&run, &others).unwrap();
    run.join("report.html")
}

#[test]
fn a_report_holds_everything_and_needs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(full(dir.path())).unwrap();
    // Accuracy has 2 charts, the comparison 2, each of the two stages 4.
    assert_eq!(page.matches("<svg ").count(), 2 + 2 + 4 * 2);
    assert_eq!(page.matches("data:image/png;base64,iVBOR").count(), 4);
    for text in [
        "shapes &amp; more",
        "pretrain",
        "finetune",
        "two_stage, mean and range of 3",
        "one_stage, mean and range of 3",
        "AP at IoU 0.50 to 0.95",
        "crescent",
        "images/s",
        "300.0 MiB",
        "reached",
        "missed",
        "rpn_cls",
        "ground",
        "detections",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let rows = page.split_once("<h2>Metrics: val</h2>").unwrap().1;
    let ap50 = rows.split_once("<td>AP at IoU 0.50</td><td>").unwrap().1;
    assert!(ap50.starts_with(|c: char| c.is_ascii_digit()), "the metric is in its row: {}", &ap50[..20]);
    assert!(!page.contains("<td>bbox_ap50</td>"), "no row has a bare key");
    for word in ["http://", "https://", "src=\"/", "<link", "<script", "@import", "NaN", "inf"] {
        let page = page.replace("http://www.w3.org/2000/svg", ""); // the SVG namespace, which is not fetched
        let outside_of_pictures: String = page.split("base64,").map(|p| p.split_once('"').map_or(p, |s| s.1)).collect();
        assert!(!outside_of_pictures.contains(word), "{word}");
    }
    let shares = page.matches("<polygon").count();
    assert!(shares >= 4, "a band for each group in each chart: {shares}");
}

/// A run with masks, compared with a run without.
#[test]
fn masks_have_curves_and_columns() {
    let dir = tempfile::tempdir().unwrap();
    let (masks, boxes) = (dir.path().join("mask"), dir.path().join("box"));
    for run in [&masks, &boxes] {
        write_run(run, &[("pretrain", 100)], 1, 1.0);
    }
    let edit = |text: &str| {
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        let at = if value["val"].is_object() { &mut value["val"] } else { &mut value };
        if let Some(metrics) = at.get_mut("metrics") {
            metrics["segm_ap"] = 0.345.into();
            metrics["segm_ap50"] = 0.678.into();
            at["per_class"]["star"] =
                serde_json::json!({ "ap": 0.5, "ap_small": -1.0, "segm_ap": 0.123, "segm_ap50": 0.2 });
        }
        value.to_string()
    };
    let (log, metrics) = (masks.join("log.jsonl"), masks.join("metrics.json"));
    fs::write(&metrics, edit(&fs::read_to_string(&metrics).unwrap())).unwrap();
    let lines: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(edit).collect();
    fs::write(&log, lines.join("\n")).unwrap();
    let page = |run: &Path, beside: &[PathBuf]| {
        write_report(run, beside).unwrap();
        fs::read_to_string(run.join("report.html")).unwrap()
    };
    let with = page(&masks, std::slice::from_ref(&boxes));
    for text in [
        "</i>mask AP50</span>",
        "Mask AP over training time",
        "<b>34.5</b>mask AP (val)",
        "<th>boxes</th><th>masks</th>",
        "<th>mask AP</th><th>mask AP50</th><th>best AP</th>",
        "<td>12.3</td><td>20.0</td>",
    ] {
        assert!(with.contains(text), "{text}");
    }
    assert_eq!(with.matches("<svg ").count(), 2 + 4 + 4);
    let without = page(&boxes, &[]);
    assert!(!without.to_lowercase().contains("mask"), "nothing about masks where there are none");
}

#[test]
fn what_is_missing_or_damaged_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let page = |d: &Path| {
        write_report(d, &[]).unwrap();
        fs::read_to_string(d.join("report.html")).unwrap()
    };
    assert!(page(dir.path()).contains("not finished"));
    write_run(dir.path(), &[("pretrain", 100)], 1, 1.0);
    let log = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    fs::write(dir.path().join("log.jsonl"), &log[..log.len() - 200]).unwrap();
    fs::write(dir.path().join("metrics.json"), "{\"bbox_ap\": 0.").unwrap();
    fs::write(dir.path().join("recipe.toml"), "name = ").unwrap();
    fs::create_dir(dir.path().join("examples")).unwrap();
    fs::write(dir.path().join("examples/index.json"), r#"[{"file":"000.png","caption":"gone"}]"#).unwrap();
    let damaged = page(dir.path());
    assert!(damaged.contains("last evaluation") && damaged.contains("Left out, as not readable: 1 line of log.jsonl"));
    assert!(damaged.contains("<svg ") && !damaged.contains("<img"));
    fs::write(dir.path().join("log.jsonl"), [0xFF, 0xFE, b'\n', 0]).unwrap();
    page(dir.path());
    fs::write(dir.path().join("log.jsonl"), log.replace("0.02", "NaN").replace("\"loss\":", "\"loss\":NaN,\"was\":"))
        .unwrap();
    page(dir.path());
    let e = write_report(&dir.path().join("none"), &[]).unwrap_err().to_string();
    assert!(e.contains("no such run directory"), "{e}");
    assert!(write_report(dir.path(), &[dir.path().join("none")]).is_err());
}
