//! Detection examples: ground truth beside detections, as PNG files in `examples/` of the run directory. The report
//! embeds them.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::data::draw::{DrawnObject, annotated, contact_sheet, encode_png, reduced};
use crate::error::{Error, Result};
use crate::format::counted;
use crate::output::write_public;

/// Pictures are reduced to this longer side before drawing, in pixels: a report of many megabytes opens slowly.
const MAX_SIDE: u32 = 480;

/// A picture with its ground truth and its detections.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Name of the picture.
    pub name: String,
    /// The picture.
    pub image: RgbImage,
    /// Ground truth; boxes in pixels of the picture.
    pub truth: Vec<DrawnObject>,
    /// Detections to show; boxes in pixels of the picture.
    pub found: Vec<DrawnObject>,
}

/// An entry of `examples/index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    file: String,
    caption: String,
}

/// Draws examples into `examples/` of a run directory and returns the files. Earlier examples are removed. `names` are
/// the names of the classes.
pub fn save_examples(run_dir: &Path, examples: &[Example], names: &[String]) -> Result<Vec<PathBuf>> {
    let dir = run_dir.join("examples");
    for old in read_index(&dir) {
        let path = dir.join(old.file);
        if path.exists() {
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let (mut entries, mut paths) = (Vec::new(), Vec::new());
    for (i, example) in examples.iter().enumerate() {
        let file = format!("{i:03}.png");
        let path = dir.join(&file);
        write_public(&path, &encode_png(&side_by_side(example, names))?)?;
        let (objects, detections) = (counted(example.truth.len(), "object"), counted(example.found.len(), "detection"));
        let caption = format!("{}: {objects}, {detections}", example.name);
        entries.push(Entry { file, caption });
        paths.push(path);
    }
    let index = dir.join("index.json");
    let text = serde_json::to_vec_pretty(&entries).map_err(|e| Error::io(&index, e.into()))?;
    write_public(&index, &text)?;
    Ok(paths)
}

/// Draws ground truth on the left and detections on the right.
fn side_by_side(example: &Example, names: &[String]) -> RgbImage {
    let (image, scale) = reduced(&example.image, MAX_SIDE);
    let scaled = |objects: &[DrawnObject]| -> Vec<DrawnObject> {
        let polygons =
            |o: &DrawnObject| o.polygons.iter().map(|p| p.iter().map(|c| c.map(|v| v * scale)).collect()).collect();
        objects
            .iter()
            .map(|o| DrawnObject { bbox: o.bbox.map(|v| v * scale as f32), polygons: polygons(o), ..o.clone() })
            .collect()
    };
    let half = |objects: &[DrawnObject], title: &str| (annotated(&image, &scaled(objects), names), title.to_string());
    contact_sheet(&[half(&example.truth, "ground truth"), half(&example.found, "detections")], 2)
}

/// Reads the bytes and the caption of each example. Missing files are left out.
pub fn read_examples(run_dir: &Path) -> Vec<(Vec<u8>, String)> {
    let dir = run_dir.join("examples");
    let read = |e: Entry| Some((std::fs::read(dir.join(e.file)).ok()?, e.caption));
    read_index(&dir).into_iter().filter_map(read).collect()
}

fn read_index(dir: &Path) -> Vec<Entry> {
    let text = std::fs::read(dir.join("index.json")).unwrap_or_default();
    let entries: Vec<Entry> = serde_json::from_slice(&text).unwrap_or_default();
    // Only names without a path: the index must not lead out of its folder.
    entries.into_iter().filter(|e| !e.file.contains(['/', '\\']) && e.file.ends_with(".png")).collect()
}

/// Encodes bytes in base64 (RFC 4648) with padding.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let v = three.iter().fold(0u32, |v, &b| v << 8 | u32::from(b)) << (8 * (3 - three.len()));
        for k in 0..4 {
            let digit = char::from(DIGITS[(v >> (18 - 6 * k) & 63) as usize]);
            text.push(if k <= three.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), want);
        }
        assert_eq!(base64(&[0xFB, 0xFF]), "+/8=");
    }

    #[test]
    fn examples_are_kept_replaced_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let object = DrawnObject {
            bbox: [10.0, 10.0, 900.0, 500.0],
            class: 0,
            score: Some(0.5),
            polygons: vec![vec![[1.0; 2]; 3]],
            note: "",
        };
        let example = Example {
            name: "a.png".into(),
            image: RgbImage::new(1000, 600),
            truth: vec![object.clone()],
            found: vec![object.clone(), object],
        };
        assert!(read_examples(dir.path()).is_empty());
        save_examples(dir.path(), &[example.clone(), example.clone(), example.clone()], &[]).unwrap();
        let files = save_examples(dir.path(), &[example], &["a".into()]).unwrap();
        let left = std::fs::read_dir(dir.path().join("examples")).unwrap().count();
        assert_eq!((files.len(), left), (1, 2));
        let back = read_examples(dir.path());
        assert_eq!(back[0].1, "a.png: 1 object, 2 detections");
        let sheet = image::load_from_memory(&back[0].0).unwrap();
        assert!(sheet.width() < 2 * MAX_SIDE + 40 && sheet.width() > 2 * MAX_SIDE);
        std::fs::write(dir.path().join("examples/index.json"), r#"[{"file":"../x.png","caption":""}]"#).unwrap();
        assert!(read_examples(dir.path()).is_empty());
    }
}
