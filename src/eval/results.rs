//! Detections in COCO's results format, boxes and masks.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One detection in COCO's results format. A file may leave `bbox` out where there is a `segmentation`: then it is that of
/// the mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Row")]
pub struct ResultBox {
    /// Image id of the annotation file.
    pub image_id: i64,
    /// Category id of the annotation file.
    pub category_id: i64,
    /// x, y, width, height in pixels of the original image.
    pub bbox: [f64; 4],
    /// 0 to 1.
    pub score: f64,
    /// Its mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<RleMask>,
}

/// A detection as a file has it.
#[derive(Deserialize)]
struct Row {
    image_id: i64,
    category_id: i64,
    bbox: Option<[f64; 4]>,
    score: f64,
    segmentation: Option<RleMask>,
}

impl TryFrom<Row> for ResultBox {
    type Error = String;

    fn try_from(row: Row) -> Result<Self, String> {
        let Row { image_id, category_id, bbox, score, segmentation } = row;
        let bbox = match (bbox, &segmentation) {
            (Some(bbox), _) => bbox,
            (None, Some(mask)) => mask.area_and_bbox().map_err(|e| e.to_string())?.1,
            (None, None) => return Err(format!("detection of image {image_id}: neither bbox nor segmentation")),
        };
        Ok(ResultBox { image_id, category_id, bbox, score, segmentation })
    }
}

/// A mask as COCO's compressed run lengths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RleMask {
    /// Height and width of the image.
    pub size: [u32; 2],
    /// Lengths of runs down the columns, background first, in COCO's letters.
    pub counts: String,
}

impl RleMask {
    /// The mask of the pixels of `window` (x0, y0, x1, y1, inside the image) that `set` tells, in an image of `size`
    /// (width, height).
    ///
    /// Errors: `Value` if the window leaves the image, or the image has 2³² pixels or more.
    ///
    /// Cost: one call of `set` for each pixel of the window, down its columns.
    pub fn from_window(size: (u32, u32), window: [u32; 4], set: impl Fn(u32, u32) -> bool) -> Result<RleMask> {
        let ([x0, y0, x1, y1], (w, h)) = (window, size);
        let pixels = u32::try_from(u64::from(w) * u64::from(h)).ok();
        let Some(pixels) = pixels.filter(|_| x0 <= x1 && y0 <= y1 && x1 <= w && y1 <= h) else {
            return Err(Error::value("mask", format!("window {window:?} in an image of {w} × {h}")));
        };
        // `start`: where the run being read began; runs go on across the ends of columns.
        let (mut counts, mut start, mut value) = (Vec::new(), 0, false);
        let mut turn = |at: u32, to: bool| {
            if to != value {
                counts.push(at - start);
                (start, value) = (at, to);
            }
        };
        for x in x0..x1 {
            for y in y0..y1 {
                turn(x * h + y, set(x, y));
            }
            // The next column goes on where this one ends, unless rows lie between.
            if y1 - y0 < h {
                turn(x * h + y1, false);
            }
        }
        turn(x1 * h, false);
        // A mask that ends in its last pixel has no run behind it.
        if start < pixels || counts.is_empty() {
            counts.push(pixels - start);
        }
        Ok(Self::from_counts(size, counts))
    }

    /// From the lengths of runs down the columns of an image of `size` (width, height), background first.
    pub fn from_counts((w, h): (u32, u32), counts: Vec<u32>) -> RleMask {
        RleMask { size: [h, w], counts: hotcoco::mask::rle_to_string(&hotcoco::Rle { h, w, counts }) }
    }

    /// Pixels, and the box x, y, width, height of them.
    ///
    /// Errors: `Value` if `counts` does not decode or exceeds `size`.
    pub fn area_and_bbox(&self) -> Result<(u64, [f64; 4])> {
        hotcoco::mask::area_and_bbox_from_string(&self.counts, self.size[0], self.size[1])
            .map_err(|e| Error::value("mask", e.to_string()))
    }

    /// The mask of the mirrored image, left and right exchanged.
    ///
    /// Errors: as [`RleMask::area_and_bbox`].
    ///
    /// Cost: linear in runs and in columns with set pixels.
    pub fn mirrored(&self) -> Result<RleMask> {
        let (rle, [h, w]) = (self.rle()?, self.size);
        let mut spans: Vec<[u32; 3]> = Vec::new(); // column, rows
        let mut at = 0;
        for (i, &n) in rle.counts.iter().enumerate() {
            let (mut from, end) = (at, at + n);
            at = end;
            while i % 2 == 1 && from < end {
                let column = from / h;
                let to = (end - column * h).min(h);
                spans.push([column, from - column * h, to]);
                from = column * h + to;
            }
        }
        let (mut counts, mut done): (Vec<u32>, u32) = (Vec::new(), 0);
        for column in spans.chunk_by(|a, b| a[0] == b[0]).rev() {
            for &[x, from, to] in column {
                let start = (w - 1 - x) * h + from;
                match counts.last_mut() {
                    Some(run) if start == done => *run += to - from,
                    _ => counts.extend([start - done, to - from]),
                }
                done = start + to - from;
            }
        }
        if done < h * w || counts.is_empty() {
            counts.push(h * w - done);
        }
        Ok(Self::from_counts((w, h), counts))
    }

    /// Polygons around the pixels, simplified where it hardly shows: for drawing.
    ///
    /// Errors: as [`RleMask::area_and_bbox`].
    pub fn outlines(&self) -> Result<Vec<Vec<[f64; 2]>>> {
        Ok(crate::data::draw_set::rle_outlines(&self.rle()?))
    }

    fn rle(&self) -> Result<hotcoco::Rle> {
        let [h, w] = self.size;
        hotcoco::mask::rle_from_string(&self.counts, h, w).map_err(|e| Error::value("mask", e.to_string()))
    }

    /// The pixels by rows, a byte each.
    ///
    /// Errors: as [`RleMask::area_and_bbox`].
    pub fn to_bitmap(&self) -> Result<Vec<u8>> {
        let ([h, w], columns) = (self.size, hotcoco::mask::decode(&self.rle()?));
        let (h, w) = (h as usize, w as usize);
        Ok((0..h * w).map(|i| columns[i % w * h + i / w]).collect())
    }
}

/// Writes detections as a COCO results file.
pub fn write_results(path: &Path, detections: &[ResultBox]) -> Result<()> {
    let text = serde_json::to_string(detections).expect("eval: plain numbers are JSON");
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}

/// Reads a COCO results file.
pub fn read_results(path: &Path) -> Result<Vec<ResultBox>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::data(path, format!("not a COCO results file: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};

    #[test]
    fn results_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let mask = RleMask::from_window((9, 7), [2, 1, 6, 5], |x, y| x + y != 5).unwrap();
        let d = ResultBox { image_id: 3, category_id: 2, bbox: [0.5, 1.0, 2.0, 3.25], score: 0.75, segmentation: None };
        let all = vec![d.clone(), ResultBox { segmentation: Some(mask.clone()), ..d }];
        write_results(&path, &all).unwrap();
        assert_eq!(read_results(&path).unwrap(), all);
        assert_eq!(std::fs::read_to_string(&path).unwrap().matches("segmentation").count(), 1);
        assert!(read_results(&dir.path().join("none.json")).is_err());

        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_results(&path)
        };
        let row =
            serde_json::json!([{"image_id": 3, "category_id": 2, "score": 0.5, "segmentation": mask}]).to_string();
        assert_eq!(read(&row).unwrap()[0].bbox, [2.0, 1.0, 4.0, 4.0], "the mask's");
        let e = read(r#"[{"image_id":3,"category_id":2,"score":0.5}]"#).unwrap_err().to_string();
        assert!(e.contains("image 3: neither bbox nor segmentation"), "{e}");
        let bad = row.replace(&serde_json::json!(mask.counts).to_string(), "\"!\"");
        let e = read(&bad).unwrap_err().to_string();
        assert!(e.contains("invalid RLE"), "{e}");
    }

    #[test]
    fn windows_become_masks_of_their_image() {
        let mut rng = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
        for case in 0..500 {
            let (w, h) = (1 + rng.below(9), 1 + rng.below(9));
            let mut part = |n: u32| {
                let (a, b) = (rng.below(n + 1), rng.below(n + 1));
                if case % 2 == 0 { (0, n) } else { (a.min(b), a.max(b)) }
            };
            let ((x0, x1), (y0, y1)) = (part(w), part(h));
            let bits: Vec<bool> = (0..w * h).map(|_| rng.uniform() < [0.5, 1.0, 0.0, 0.9][case / 2 % 4]).collect();
            let set = |x: u32, y: u32| bits[(y * w + x) as usize];
            let mask = RleMask::from_window((w, h), [x0, y0, x1, y1], set).unwrap();
            let want: Vec<u8> = (0..w * h)
                .map(|i| (i % w, i / w))
                .map(|(x, y)| u8::from((x0..x1).contains(&x) && (y0..y1).contains(&y) && set(x, y)))
                .collect();
            assert_eq!(mask.to_bitmap().unwrap(), want);
            assert_eq!(mask.area_and_bbox().unwrap().0, want.iter().map(|&v| u64::from(v)).sum::<u64>());
            let bytes: Vec<u8> = (0..w * h).map(|i| want[(i % h * w + i / h) as usize]).collect();
            let rle = hotcoco::mask::encode(&bytes, h, w).unwrap();
            assert_eq!(mask.counts, hotcoco::mask::rle_to_string(&rle), "as pycocotools writes it");

            let mirrored = mask.mirrored().unwrap();
            let flipped: Vec<u8> = (0..w * h).map(|i| want[(i / w * w + w - 1 - i % w) as usize]).collect();
            assert_eq!(mirrored.to_bitmap().unwrap(), flipped);
            assert_eq!(mirrored.mirrored().unwrap(), mask, "to the letter");
            assert_eq!(mask.outlines().unwrap().is_empty(), want.iter().all(|&v| v == 0));
        }
        assert!(RleMask::from_window((4, 4), [1, 1, 5, 2], |_, _| true).is_err());
        assert!(RleMask::from_window((1 << 16, 1 << 16), [0, 0, 0, 0], |_, _| true).is_err());
    }
}
