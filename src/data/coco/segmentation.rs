//! The mask of an annotation in the form that the file has (polygons or run lengths), packed into few bytes. COCO's own
//! rasteriser turns it into pixels.
//!
//! That rasteriser rounds polygons to fifths of a pixel, and the packed form holds these rounded numbers. So the masks
//! are exactly those of the numbers in the file, and the difference between neighbouring points mostly takes one byte.
//! Main type: [`Segmentation`].

use super::findings::{FindingKind, MAX_COORDINATE};
use super::raw::{RawCounts, RawSegmentation};
use crate::data::toggles::{MaskScratch, RowToggles};

/// The mask of one annotation on the canvas of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segmentation {
    form: Form,
    /// Variable-length integers. For each polygon: the number of points and the differences between them. For an RLE:
    /// the lengths of its runs.
    packed: Box<[u8]>,
    rows: RowToggles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Polygons,
    Runs,
}

/// A `segmentation` after reading: the mask if it is usable, and the findings.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub mask: Option<Segmentation>,
    /// Kind and detail of each problem.
    pub findings: Vec<(FindingKind, String)>,
}

impl Segmentation {
    /// Packs polygons (flat lists of x and y) on a canvas of `size` (width, height). None if the canvas has 2³² pixels
    /// or more.
    pub fn from_polygons(polygons: &[Vec<f64>], size: (u32, u32), scratch: &mut MaskScratch) -> Option<Self> {
        let mut packed = Vec::new();
        for polygon in polygons {
            let points = polygon.as_chunks::<2>().0;
            put(&mut packed, points.len() as u32);
            let mut last = [0; 2];
            for p in points {
                for (&v, last) in p.iter().zip(&mut last) {
                    let fifths = (5.0 * v + 0.5).clamp(-FAR, FAR) as i32;
                    let step = fifths - *last;
                    put(&mut packed, ((step << 1) ^ (step >> 31)) as u32);
                    *last = fifths;
                }
            }
        }
        Self { form: Form::Polygons, packed: packed.into(), rows: RowToggles::default() }.measured(size, scratch)
    }

    /// Packs the lengths of runs down the columns, background first. None if they do not add up to `size` (width,
    /// height).
    pub fn from_counts(counts: &[u32], size: (u32, u32), scratch: &mut MaskScratch) -> Option<Self> {
        let pixels = u64::from(size.0) * u64::from(size.1);
        if counts.iter().map(|&c| u64::from(c)).sum::<u64>() != pixels {
            return None;
        }
        let mut packed = Vec::new();
        counts.iter().for_each(|&c| put(&mut packed, c));
        Self { form: Form::Runs, packed: packed.into(), rows: RowToggles::default() }.measured(size, scratch)
    }

    fn measured(mut self, size: (u32, u32), scratch: &mut MaskScratch) -> Option<Self> {
        (u64::from(size.0) * u64::from(size.1) <= u64::from(u32::MAX)).then_some(())?;
        let mut counts = std::mem::take(&mut scratch.counts);
        self.counts(size, &mut counts);
        self.rows = scratch.row_toggles(&counts, size.1);
        scratch.counts = counts;
        Some(self)
    }

    /// Whether no pixel is set.
    pub fn is_empty(&self) -> bool {
        self.rows.all == 0
    }

    /// Whether the file has polygons (otherwise it has runs).
    pub fn is_polygons(&self) -> bool {
        self.form == Form::Polygons
    }

    /// Run ends of the mask, row by row.
    pub fn row_toggles(&self) -> RowToggles {
        self.rows
    }

    /// Heap memory in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.len()
    }

    /// The polygons as flat lists of x and y, accurate to a fifth of a pixel. None if the file has runs.
    pub fn polygons(&self) -> Option<Vec<Vec<f64>>> {
        if self.form == Form::Runs {
            return None;
        }
        let (mut bytes, mut out) = (&*self.packed, Vec::new());
        while !bytes.is_empty() {
            let points = take(&mut bytes);
            let mut last = [0i32; 2];
            let mut polygon = Vec::with_capacity(2 * points as usize);
            for _ in 0..points {
                for last in &mut last {
                    let step = take(&mut bytes);
                    *last += (step >> 1) as i32 ^ -((step & 1) as i32);
                    polygon.push(coordinate(*last));
                }
            }
            out.push(polygon);
        }
        Some(out)
    }

    /// Writes the lengths of the runs down the columns, background first, as pycocotools gives them. `size` (width,
    /// height) is that of the image.
    ///
    /// Cost: for a polygon, linear in its length in fifths of a pixel; for runs, linear in their number.
    pub fn counts(&self, size: (u32, u32), out: &mut Vec<u32>) {
        out.clear();
        match self.polygons() {
            // The only error is a canvas that is too large, and the constructors refuse it. An empty mask stands for
            // it.
            Some(polygons) => {
                out.extend(hotcoco::mask::fr_polys(&polygons, size.1, size.0).map_or(vec![], |r| r.counts))
            }
            None => {
                let mut bytes = &*self.packed;
                while !bytes.is_empty() {
                    out.push(take(&mut bytes));
                }
            }
        }
    }

    /// The mask in hotcoco's type.
    pub(crate) fn rle(&self, size: (u32, u32)) -> hotcoco::Rle {
        let mut counts = Vec::new();
        self.counts(size, &mut counts);
        hotcoco::Rle { h: size.1, w: size.0, counts }
    }
}

/// hotcoco clamps vertices to this many fifths of a pixel: 2²² pixels.
const FAR: f64 = 5.0 * 4_194_304.0;

/// A coordinate `x` for which `(5 * x + 0.5) as i32` is `fifths`. Casts round towards zero, so negative ones lie lower.
fn coordinate(fifths: i32) -> f64 {
    (f64::from(fifths) - if fifths < 0 { 0.75 } else { 0.0 }) / 5.0
}

/// Appends an integer, 7 bits per byte, low bits first; the top bit says that another byte follows.
fn put(out: &mut Vec<u8>, mut v: u32) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Reads back one integer that [`put`] wrote.
fn take(bytes: &mut &[u8]) -> u32 {
    let (mut v, mut shift) = (0, 0);
    while let Some((&b, rest)) = bytes.split_first() {
        *bytes = rest;
        v |= u32::from(b & 0x7F) << shift;
        shift += 7;
        if b < 0x80 {
            break;
        }
    }
    v
}

/// Reads the text of a `segmentation` for an image of `size` (width, height). `bbox` is the annotation's box, if it is
/// usable.
pub(super) fn parse(text: Option<&str>, size: (u32, u32), bbox: Option<[f64; 4]>, scratch: &mut MaskScratch) -> Parsed {
    use FindingKind::*;
    let mut out = Parsed::default();
    let mut outside = None;
    let mut add = |kind, text: String| out.findings.push((kind, text));
    if u64::from(size.0) * u64::from(size.1) > u64::from(u32::MAX) {
        add(BadMask, "image of 2³² pixels or more".to_string());
        return out;
    }
    let raw = text.map_or(Ok(RawSegmentation::Missing), serde_json::from_str);
    match raw.unwrap_or(RawSegmentation::Other) {
        RawSegmentation::Missing => add(MissingMask, String::new()),
        RawSegmentation::Other => add(BadMask, excerpt(text.unwrap_or_default())),
        RawSegmentation::Polygons(mut polygons) => {
            polygons.retain(|p| {
                if let Some(v) = p.iter().find(|v| v.is_nan() || v.abs() > MAX_COORDINATE) {
                    add(NonFinitePolygon, format!("coordinate {v:?}"));
                } else if p.len() < 6 || p.len() % 2 == 1 {
                    add(ShortPolygon, format!("{} numbers", p.len()));
                } else {
                    return true;
                }
                false
            });
            if !polygons.is_empty() {
                outside = polygons.iter().map(|p| extent(p)).find_map(|e| disjoint(e, bbox?));
                out.mask = Segmentation::from_polygons(&polygons, size, scratch);
            }
        }
        RawSegmentation::Runs { size: [h, w], .. } if (w, h) != size => {
            add(MaskSize, format!("RLE of {w} × {h}, image {} × {}", size.0, size.1));
        }
        RawSegmentation::Runs { counts, .. } => {
            let counts = match counts {
                RawCounts::List(counts) => Ok(counts),
                RawCounts::Text(text) => hotcoco::mask::rle_from_string(&text, size.1, size.0)
                    .map(|r| r.counts)
                    .map_err(|e| e.to_string().trim_start_matches("invalid RLE: ").to_string()),
            };
            match counts {
                Err(e) => add(BadRle, e),
                Ok(counts) => {
                    out.mask = Segmentation::from_counts(&counts, size, scratch);
                    if out.mask.is_none() {
                        let sum: u64 = counts.iter().map(|&c| u64::from(c)).sum();
                        let (w, h) = size;
                        add(BadRle, format!("the runs add up to {sum}, not to {w} × {h}"));
                    }
                }
            }
        }
    }
    match &out.mask {
        Some(mask) if mask.is_empty() => out.findings.push((EmptyMask, String::new())),
        Some(mask) => {
            let of_runs = || {
                let bbox = bbox.filter(|_| !mask.is_polygons())?;
                let [x, y, w, h] = hotcoco::mask::to_bbox(&mask.rle(size));
                disjoint([x, y, x + w, y + h], bbox)
            };
            out.findings.extend(outside.or_else(of_runs).map(|text| (MaskOutsideBox, text)));
        }
        None => {}
    }
    out
}

/// Bounding box x0, y0, x1, y1 of a polygon's points.
fn extent(polygon: &[f64]) -> [f64; 4] {
    let start = [f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
    let points = polygon.as_chunks::<2>().0;
    points.iter().fold(start, |e, [x, y]| [e[0].min(*x), e[1].min(*y), e[2].max(*x), e[3].max(*y)])
}

/// Says so in words if a mask with this bounding box lies wholly outside its annotation's box. A distance of up to one
/// pixel is tolerated, because rounding can cause it.
fn disjoint(extent: [f64; 4], bbox: [f64; 4]) -> Option<String> {
    let ([x0, y0, x1, y1], [x, y, w, h]) = (extent, bbox);
    let apart = x0 > x + w + 1.0 || x1 < x - 1.0 || y0 > y + h + 1.0 || y1 < y - 1.0;
    apart.then(|| format!("from ({x0}, {y0}) to ({x1}, {y1}), bbox {bbox:?}"))
}

/// The first 40 characters of a text.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Purpose, Stream};

    const SIZE: (u32, u32) = (30, 20);

    fn read(text: &str) -> (Option<Segmentation>, Vec<FindingKind>) {
        let p = parse(Some(text), SIZE, Some([0.0, 0.0, 30.0, 20.0]), &mut MaskScratch::default());
        (p.mask, p.findings.into_iter().map(|f| f.0).collect())
    }

    fn counts(s: &Segmentation) -> Vec<u32> {
        s.rle(SIZE).counts
    }

    #[test]
    fn integers_survive_packing() {
        let mut bytes = Vec::new();
        let all = [0, 1, 127, 128, 16_383, 16_384, u32::MAX];
        all.iter().for_each(|&v| put(&mut bytes, v));
        let mut rest = &bytes[..];
        assert!(all.iter().all(|&v| take(&mut rest) == v) && rest.is_empty());
        for fifths in (-40_000..40_000).chain([-(FAR as i32), FAR as i32]) {
            let back = (5.0 * coordinate(fifths) + 0.5).clamp(-FAR, FAR) as i32;
            assert_eq!(back, fifths);
        }
    }

    /// Coordinates near the rasteriser's rounding limits, inside and far outside the canvas, in polygons that cross
    /// themselves.
    #[test]
    fn packed_polygons_make_the_masks_of_the_files_numbers() {
        let mut rng = Stream::new(1, 0, 0, 0, Purpose::Test).rng();
        for case in 0..400 {
            let spread = [1.0, 1.5, 4.0, 1e5][case % 4];
            let mut polygon = || -> Vec<f64> {
                let mut number = |side: u32| {
                    let v = f64::from(side) * (0.5 + spread * (f64::from(rng.uniform()) - 0.5));
                    if case % 3 == 0 { (v * 10.0).round() / 10.0 } else { v }
                };
                (0..3 + case % 7).flat_map(|_| [number(SIZE.0), number(SIZE.1)]).collect()
            };
            let polygons: Vec<Vec<f64>> = (0..1 + case % 3).map(|_| polygon()).collect();
            let packed = Segmentation::from_polygons(&polygons, SIZE, &mut MaskScratch::default()).unwrap();
            let want = hotcoco::mask::fr_polys(&polygons, SIZE.1, SIZE.0).unwrap();
            assert_eq!(counts(&packed), want.counts, "{polygons:?}");
            assert_eq!(packed.is_empty(), hotcoco::mask::area(&want) == 0);
        }
    }

    #[test]
    fn every_form_is_read() {
        let (polygons, none) = read("[[1,1,4,1,4,3,1,3],[10,2,12,2,12,4]]");
        assert!(none.is_empty() && polygons.as_ref().unwrap().is_polygons());
        let polygons = polygons.unwrap();
        assert_eq!(polygons.polygons().unwrap()[0], [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]);
        let list = counts(&polygons);
        let (runs, none) = read(&serde_json::json!({"size": [20, 30], "counts": list}).to_string());
        assert!(none.is_empty() && runs.as_ref().unwrap().polygons().is_none());
        assert_eq!(counts(runs.as_ref().unwrap()), list);
        let text = hotcoco::mask::rle_to_string(&polygons.rle(SIZE));
        let (compressed, none) = read(&serde_json::json!({"counts": text, "size": [20.0, "30"], "x": {}}).to_string());
        assert!(none.is_empty());
        assert_eq!(compressed, runs);
        assert_eq!(runs.unwrap().row_toggles(), polygons.row_toggles());
    }

    #[test]
    fn what_is_wrong_is_told() {
        use FindingKind::*;
        for (text, want, usable) in [
            ("[]", vec![MissingMask], false),
            ("{}", vec![MissingMask], false),
            ("[[]]", vec![ShortPolygon], false),
            ("[[1,2,3,4]]", vec![ShortPolygon], false),
            ("[[1,2,3,4,5,6,7]]", vec![ShortPolygon], false),
            ("[[1,1,9,1,9,9],[1,2],[1,1,\"N\",9,9,9]]", vec![ShortPolygon, NonFinitePolygon], true),
            ("[[1,1,null,1,9,9]]", vec![NonFinitePolygon], false),
            ("[[1,1,1e300,1,9,9]]", vec![NonFinitePolygon], false),
            ("[[1,1,9,1,9,9],[70,1,80,1,80,9]]", vec![MaskOutsideBox], true),
            ("[[1,1,9,1,9,9],[25,15,30.9,15,30.9,20]]", vec![], true),
            ("[[-9,-9,-1,-9,-1,-1]]", vec![EmptyMask], true),
            ("[[5,5,9,9,5,5]]", vec![EmptyMask], true),
            ("[1,2,3,4,5,6]", vec![BadMask], false),
            ("[[1,2,3,4,5,\"x\"]]", vec![BadMask], false),
            ("\"1 2 3\"", vec![BadMask], false),
            ("7", vec![BadMask], false),
            ("{\"counts\":[600]}", vec![BadMask], false),
            ("{\"size\":[20,30]}", vec![BadMask], false),
            ("{\"size\":[20,30],\"counts\":7}", vec![BadMask], false),
            ("{\"size\":[20,30,3],\"counts\":[600]}", vec![BadMask], false),
            ("{\"size\":[30,20],\"counts\":[600]}", vec![MaskSize], false),
            ("{\"size\":[20,30],\"counts\":[1,2]}", vec![BadRle], false),
            ("{\"size\":[20,30],\"counts\":[-1,601]}", vec![BadMask], false),
            ("{\"size\":[20,30],\"counts\":[4294967295,601]}", vec![BadRle], false),
            ("{\"size\":[20,30],\"counts\":\"~~~~~~~~~~~~~\"}", vec![BadRle], false),
            ("{\"size\":[20,30],\"counts\":\"!\"}", vec![BadRle], false),
            ("{\"size\":[20,30],\"counts\":[600]}", vec![EmptyMask], true),
        ] {
            let (mask, kinds) = read(text);
            assert_eq!((mask.is_some(), kinds), (usable, want), "{text}");
        }
        let p = parse(None, SIZE, None, &mut MaskScratch::default());
        assert_eq!(p.findings[0].0, MissingMask);
        let p = parse(Some("[[1,1,9,1,9,9]]"), (1 << 17, 1 << 17), None, &mut MaskScratch::default());
        assert!(p.mask.is_none() && p.findings[0].0 == BadMask);
    }
}
