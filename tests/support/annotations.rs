//! A small valid COCO annotation file, which tests then damage.

use serde_json::{Value, json};
use tempfile::TempDir;

/// A valid file: two images of 100×80 pixels and three annotations.
pub fn good() -> Value {
    json!({
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 80}
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 7, "bbox": [0.5, 0, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 13, "image_id": 2, "category_id": 7, "bbox": [50, 40, 50, 40], "area": 2000, "iscrowd": 0}
        ]
    })
}

/// Writes an annotation file into a folder, as `a.json`.
pub fn write(dir: &TempDir, text: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = dir.path().join("a.json");
    std::fs::write(&path, text).unwrap();
    path
}
