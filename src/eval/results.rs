//! Detections in COCO's results format, boxes and masks.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One detection in COCO's results format. A file may leave out `bbox` if it has a `segmentation`; then the box is that
/// of the mask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Row")]
pub struct ResultBox {
    /// Image id, as in the annotation file.
    pub image_id: i64,
    /// Category id, as in the annotation file.
    pub category_id: i64,
    /// Box as x, y, width, height in pixels of the original image.
    pub bbox: [f64; 4],
    /// Confidence, 0 to 1.
    pub score: f64,
    /// The mask, if the detector has masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<RleMask>,
}

/// A detection as it stands in a file.
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
    /// Encodes lengths of runs down the columns of an image of `size` (width, height), background first.
    pub fn from_counts((w, h): (u32, u32), counts: Vec<u32>) -> RleMask {
        RleMask { size: [h, w], counts: hotcoco::mask::rle_to_string(&hotcoco::Rle { h, w, counts }) }
    }

    /// Number of pixels, and their bounding box x, y, width, height.
    ///
    /// Errors: `Value` if `counts` does not decode or exceeds `size`.
    pub fn area_and_bbox(&self) -> Result<(u64, [f64; 4])> {
        hotcoco::mask::area_and_bbox_from_string(&self.counts, self.size[0], self.size[1])
            .map_err(|e| Error::value("mask", e.to_string()))
    }

    /// The mask mirrored left and right.
    ///
    /// Errors: those of [`RleMask::area_and_bbox`].
    ///
    /// Cost: linear in the number of runs and of columns with set pixels.
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

    /// Polygons around the pixels for drawing, slightly simplified.
    ///
    /// Errors: those of [`RleMask::area_and_bbox`].
    pub fn outlines(&self) -> Result<Vec<Vec<[f64; 2]>>> {
        Ok(crate::data::draw_set::rle_outlines(&self.rle()?))
    }

    fn rle(&self) -> Result<hotcoco::Rle> {
        let [h, w] = self.size;
        hotcoco::mask::rle_from_string(&self.counts, h, w).map_err(|e| Error::value("mask", e.to_string()))
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
        let inside = |x: u32, y: u32| (2..6).contains(&x) && (1..5).contains(&y) && x + y != 5;
        let bits: Vec<u8> = (0..63).map(|i| u8::from(inside(i % 9, i / 9))).collect();
        let mask = encode(&bits, 9, 7);
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

    /// Encodes a bitmap given by rows.
    fn encode(bitmap: &[u8], w: u32, h: u32) -> RleMask {
        let columns: Vec<u8> = (0..w * h).map(|i| bitmap[(i % h * w + i / h) as usize]).collect();
        RleMask::from_counts((w, h), hotcoco::mask::encode(&columns, h, w).unwrap().counts)
    }

    /// Decodes to a bitmap by rows.
    fn decode(mask: &RleMask) -> Vec<u8> {
        let ([h, w], columns) = (mask.size, hotcoco::mask::decode(&mask.rle().unwrap()));
        (0..h * w).map(|i| columns[(i % w * h + i / w) as usize]).collect()
    }

    #[test]
    fn masks_are_mirrored_and_outlined() {
        let mut rng = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
        for case in 0..500 {
            let (w, h) = (1 + rng.below(9), 1 + rng.below(9));
            let bits: Vec<u8> = (0..w * h).map(|_| u8::from(rng.uniform() < [0.5, 1.0, 0.0, 0.9][case % 4])).collect();
            let mask = encode(&bits, w, h);
            assert_eq!(decode(&mask), bits);
            assert_eq!(mask.area_and_bbox().unwrap().0, bits.iter().map(|&v| u64::from(v)).sum::<u64>());
            let mirrored = mask.mirrored().unwrap();
            let flipped: Vec<u8> = (0..w * h).map(|i| bits[(i / w * w + w - 1 - i % w) as usize]).collect();
            assert_eq!(decode(&mirrored), flipped);
            assert_eq!(mirrored.mirrored().unwrap(), mask, "to the letter");
            assert_eq!(mask.outlines().unwrap().is_empty(), bits.iter().all(|&v| v == 0));
        }
    }
}
