//! `dataset draw`: annotated copies of a data set's pictures. Boxes and masks come as the annotation file has them,
//! polygons and run lengths alike; what training leaves out is drawn and says so.

use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;
use serde::Deserialize;

use super::coco::{Annotation, Dataset, ImageInfo};
use super::decode::decode_file;
use super::draw::{DrawnObject, annotated, contact_sheet, reduced, write_png};
use super::shapes::trace::Mask;
use crate::error::{Error, Result};

/// A picture of a data set and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetPicture {
    /// The picture's file.
    pub path: PathBuf,
    /// Its name in the annotation file, for the caption and for the copy's file name.
    pub file_name: String,
    /// Its objects.
    pub objects: Vec<DrawnObject>,
}

/// Writes to `out` a copy of each picture with its objects drawn, and `sheet.png` with the first twelve; returns the
/// files, the sheet last. `read` reads a picture (upright, as the annotations mean it).
pub fn draw_dataset(
    pictures: &[DatasetPicture],
    names: &[String],
    out: &Path,
    read: impl Fn(&Path) -> Result<RgbImage> + Sync,
) -> Result<Vec<PathBuf>> {
    const ON_SHEET: usize = 12;
    const CELL: u32 = 480; // pixels: a sheet must open quickly also where the pictures are photographs
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let done = pictures
        .par_iter()
        .enumerate()
        .map(|(i, p)| {
            let drawn = annotated(&read(&p.path)?, &p.objects, names);
            let path = out.join(copy_name(&p.file_name));
            write_png(&path, &drawn)?;
            let caption = format!("{} ({})", p.file_name, p.objects.len());
            Ok((path, (i < ON_SHEET).then(|| (reduced(&drawn, CELL).0, caption))))
        })
        .collect::<Result<Vec<_>>>()?;
    let (mut paths, mut cells) = (Vec::new(), Vec::new());
    for (path, cell) in done {
        paths.push(path);
        cells.extend(cell);
    }
    if !cells.is_empty() {
        let sheet = out.join("sheet.png");
        write_png(&sheet, &contact_sheet(&cells, 4))?;
        paths.push(sheet);
    }
    Ok(paths)
}

/// Name of an annotated copy: folders become part of the name, so that no two collide and none leaves the folder; the
/// prefix keeps it apart from `sheet.png`.
pub fn copy_name(file_name: &str) -> String {
    let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
    let safe: String =
        stem.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect();
    format!("drawn_{safe}.png")
}

/// Reads a picture as training does: upright, in RGB.
pub fn read_picture(path: &Path) -> Result<RgbImage> {
    let image = decode_file(path)?;
    let (w, h) = (image.width, image.height);
    RgbImage::from_raw(w, h, image.data).ok_or_else(|| Error::data(path, format!("cannot be drawn: {w} x {h} pixels")))
}

/// `count` pictures of a data set, evenly spread over the file, with their annotations. Masks are there if the data set
/// was read with [`super::coco::ReadOptions::segmentation`].
pub fn pictures(dataset: &Dataset, count: usize) -> Vec<DatasetPicture> {
    let all = dataset.images.len();
    let count = count.min(all);
    (0..count)
        .map(|k| k * all / count)
        .map(|i| DatasetPicture {
            path: dataset.image_path(i),
            file_name: dataset.images[i].file_name.clone(),
            objects: dataset.annotations[i].iter().map(|a| drawn(a, &dataset.images[i])).collect(),
        })
        .collect()
}

fn drawn(a: &Annotation, image: &ImageInfo) -> DrawnObject {
    let note = match (a.iscrowd, a.usable) {
        (true, _) => "crowd",
        (false, false) => "not used",
        (false, true) => "",
    };
    let polygons = a.segmentation.as_deref().map(|text| segmentation(text, image)).unwrap_or_default();
    DrawnObject { bbox: a.xyxy, class: a.class as usize, score: None, polygons, note }
}

/// The forms of `segmentation`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Segmentation {
    Polygons(Vec<Vec<f64>>),
    Counts { counts: Vec<u32>, size: [u32; 2] },
    Text { counts: String, size: [u32; 2] },
}

/// Polygons of a `segmentation`; none if it cannot be read or is of another size than the image.
fn segmentation(text: &str, image: &ImageInfo) -> Vec<Vec<[f64; 2]>> {
    let fits = |size: [u32; 2]| size == [image.height, image.width];
    let rle = match serde_json::from_str(text) {
        Ok(Segmentation::Polygons(flat)) => {
            let points = |p: &Vec<f64>| p.chunks_exact(2).map(|c| [c[0], c[1]]).collect();
            return flat.iter().filter(|p| p.len() >= 6).map(points).collect();
        }
        Ok(Segmentation::Counts { counts, size }) if fits(size) => {
            let total = counts.iter().try_fold(0u32, |sum, &c| sum.checked_add(c));
            if total != size[0].checked_mul(size[1]) {
                return Vec::new();
            }
            hotcoco::Rle { h: size[0], w: size[1], counts }
        }
        Ok(Segmentation::Text { counts, size }) if fits(size) => {
            match hotcoco::mask::rle_from_string(&counts, size[0], size[1]) {
                Ok(rle) => rle,
                Err(_) => return Vec::new(),
            }
        }
        _ => return Vec::new(),
    };
    let (w, h) = (image.width as usize, image.height as usize);
    let columns = hotcoco::mask::decode(&rle); // column by column
    let bits = (0..w * h).map(|i| columns.get(i % w * h + i / w).is_some_and(|&v| v != 0)).collect();
    Mask { x0: 0, y0: 0, w, h, bits }.parts().iter().flat_map(Mask::polygons).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(width: u32, height: u32) -> ImageInfo {
        ImageInfo { id: 1, file_name: "a.png".into(), width, height }
    }

    #[test]
    fn every_form_of_segmentation_is_drawn() {
        let square = [[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]];
        let image = info(5, 4);
        assert_eq!(segmentation("[[1,1,3,1,3,3,1,3],[0,0,1]]", &image), [square]);
        // 4 rows, 5 columns: runs down the columns
        let runs = r#"{"counts":[5,2,2,2,9],"size":[4,5]}"#;
        assert_eq!(segmentation(runs, &image), [square]);
        let rle = hotcoco::Rle { h: 4, w: 5, counts: vec![5, 2, 2, 2, 9] };
        let text = serde_json::json!({ "counts": hotcoco::mask::rle_to_string(&rle), "size": [4, 5] }).to_string();
        assert_eq!(segmentation(&text, &image), [square]);
        for wrong in [
            "",
            "null",
            "{}",
            "[]",
            r#"{"counts":[5,2,2,2,9],"size":[5,4]}"#,
            r#"{"counts":[5,2],"size":[4,5]}"#,
            r#"{"counts":[4294967295,21],"size":[4,5]}"#,
            r#"{"counts":"~~~~","size":[4,5]}"#,
        ] {
            assert!(segmentation(wrong, &image).is_empty(), "{wrong}");
        }
    }

    #[test]
    fn a_data_set_is_drawn_into_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let picture = |n: &str| DatasetPicture {
            path: PathBuf::from(n),
            file_name: n.to_string(),
            objects: vec![DrawnObject { bbox: [2.0, 2.0, 20.0, 20.0], ..DrawnObject::default() }],
        };
        let read = |p: &Path| {
            if p.ends_with("bad.jpg") { Err(Error::data(p, "cannot be read")) } else { Ok(RgbImage::new(40, 30)) }
        };
        let files = draw_dataset(&[picture("a/x.jpg"), picture("b/x.jpg")], &[], &dir.path().join("o"), read).unwrap();
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|f| f.is_file() && f.parent() == Some(&dir.path().join("o"))));
        assert_eq!(image::open(&files[0]).unwrap().width(), 160);
        assert!(draw_dataset(&[], &[], dir.path(), read).unwrap().is_empty());
        let e = draw_dataset(&[picture("bad.jpg")], &[], dir.path(), read).unwrap_err();
        assert!(e.to_string().contains("bad.jpg"));
        assert_eq!(copy_name("../../etc/x.y.png"), "drawn_.._.._etc_x.y.png");
    }
}
