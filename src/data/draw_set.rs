//! `dataset draw`: writes annotated copies of a data set's pictures. Boxes and masks (polygons and run lengths) are
//! drawn as in the annotation file. Objects that training leaves out are drawn too, with a remark.

use std::path::{Path, PathBuf};

use image::RgbImage;
use rayon::prelude::*;

use super::coco::{Annotation, Dataset, ImageInfo, Segmentation};
use super::decode::decode_file;
use super::draw::{DrawnObject, annotated, contact_sheet, is_drawn, reduced, write_png};
use super::shapes::trace::Mask;
use crate::error::{Error, Result};
use crate::output::{make_folder, refuse_existing};

/// A picture of a data set with its objects.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetPicture {
    /// Path of the picture's file.
    pub path: PathBuf,
    /// Name in the annotation file; the caption and the copy's file name are made from it.
    pub file_name: String,
    /// The objects to draw.
    pub objects: Vec<DrawnObject>,
}

/// Writes to `out` a copy of each picture with its objects drawn, and `sheet.png` with the first twelve copies. Returns
/// the paths, the sheet last. `read` reads a picture (upright, to match the annotations).
///
/// Errors: `Value` if a file of that name exists that [`write_png`] did not make; else those of `read` and of writing.
pub fn draw_dataset(
    pictures: &[DatasetPicture],
    names: &[String],
    out: &Path,
    read: impl Fn(&Path) -> Result<RgbImage> + Sync,
) -> Result<Vec<PathBuf>> {
    const ON_SHEET: usize = 12;
    const CELL: u32 = 480; // pixels: a sheet must open quickly, even with photographs
    make_folder("--out", out)?;
    let names_here = pictures.iter().map(|p| copy_name(&p.file_name)).chain(["sheet.png".to_string()]);
    for path in names_here.map(|name| out.join(name)).filter(|path| !is_drawn(path)) {
        refuse_existing("--out", &path)?;
    }
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
        .collect::<Vec<Result<_>>>(); // of several errors, the first in the order of pictures is returned
    let done = done.into_iter().collect::<Result<Vec<_>>>()?;
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

/// File name of an annotated copy. Folders become part of the name, so that names rarely collide and no copy leaves the
/// folder; the prefix keeps it apart from `sheet.png`.
pub fn copy_name(file_name: &str) -> String {
    let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
    let safe: String =
        stem.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect();
    format!("drawn_{safe}.png")
}

/// Reads a picture like training does: upright, in RGB.
pub fn read_picture(path: &Path) -> Result<RgbImage> {
    let image = decode_file(path)?;
    let (w, h) = (image.width, image.height);
    RgbImage::from_raw(w, h, image.data).ok_or_else(|| Error::data(path, format!("cannot be drawn: {w} x {h} pixels")))
}

/// Takes `count` pictures of a data set, evenly spread over the file, with their annotations. Masks are included if the
/// data set was read with [`super::coco::Masks::Read`].
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

/// An annotation as an object to draw, with its mask if it was read.
pub(crate) fn drawn(a: &Annotation, image: &ImageInfo) -> DrawnObject {
    let note = match (a.iscrowd, a.usable) {
        (true, _) => "crowd",
        (false, false) => "not used",
        (false, true) => "",
    };
    let polygons = a.segmentation.as_ref().map(|mask| outlines(mask, image)).unwrap_or_default();
    DrawnObject { bbox: a.xyxy, class: a.class as usize, score: None, polygons, note }
}

/// Polygons around a mask.
fn outlines(mask: &Segmentation, image: &ImageInfo) -> Vec<Vec<[f64; 2]>> {
    if let Some(flat) = mask.polygons() {
        return flat.iter().map(|p| p.as_chunks::<2>().0.to_vec()).collect();
    }
    rle_outlines(&mask.rle((image.width, image.height)))
}

/// Polygons around the pixels of an RLE.
///
/// Cost: linear in the bounding box of the set pixels, not in the image.
pub(crate) fn rle_outlines(rle: &hotcoco::Rle) -> Vec<Vec<[f64; 2]>> {
    let [x0, y0, w, h] = hotcoco::mask::to_bbox(rle).map(|v| v as usize);
    let (mut bits, mut at) = (vec![false; w * h], 0usize);
    for (i, &n) in rle.counts.iter().enumerate() {
        let end = at + n as usize;
        if i % 2 == 1 {
            for p in at..end {
                let (x, y) = (p / rle.h as usize, p % rle.h as usize);
                bits[(y - y0) * w + x - x0] = true;
            }
        }
        at = end;
    }
    Mask { x0, y0, w, h, bits }.parts().iter().flat_map(Mask::polygons).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toggles::MaskScratch;

    fn info(width: u32, height: u32) -> ImageInfo {
        ImageInfo { id: 1, file_name: "a.png".into(), width, height }
    }

    #[test]
    fn every_form_of_segmentation_is_drawn() {
        let square = [[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]];
        let (image, size) = (info(5, 4), (5, 4));
        let scratch = &mut MaskScratch::default();
        let polygons = Segmentation::from_polygons(&[square.as_flattened().to_vec()], size, scratch).unwrap();
        assert_eq!(outlines(&polygons, &image), [square]);
        // 4 rows, 5 columns: runs down the columns
        let runs = Segmentation::from_counts(&[5, 2, 2, 2, 9], size, scratch).unwrap();
        assert_eq!(outlines(&runs, &image), [square]);
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
