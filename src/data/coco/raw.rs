//! The text of a COCO annotation file as serde reads it. Every field is optional and may have any JSON type, so that
//! one odd entry becomes a finding and does not end the reading. Only broken JSON and missing lists are errors here.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// A scalar of any JSON type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Loose {
    /// Absent, `null`, a list or an object.
    #[default]
    None,
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl Loose {
    /// The value as an integer id; `1.0` and `"1"` are accepted.
    pub fn id(&self) -> Option<i64> {
        match self {
            Loose::Int(v) => Some(*v),
            Loose::Float(v) if v.fract() == 0.0 && v.abs() < 9e15 => Some(*v as i64),
            Loose::Text(t) => t.trim().parse().ok(),
            _ => None,
        }
    }

    /// The value as a number; NaN and infinities are numbers too.
    pub fn number(&self) -> Option<f64> {
        match self {
            Loose::Int(v) => Some(*v as f64),
            Loose::Float(v) => Some(*v),
            Loose::Text(t) => match t.as_str() {
                "N" => Some(f64::NAN),
                "I" => Some(f64::INFINITY),
                "-I" => Some(f64::NEG_INFINITY),
                t => t.trim().parse().ok(),
            },
            _ => None,
        }
    }

    /// The value as a size in pixels: a whole number from 1 to 1000000.
    pub fn size(&self) -> Option<u32> {
        let v = self.number()?;
        (v.fract() == 0.0 && (1.0..=1e6).contains(&v)).then_some(v as u32)
    }

    /// The value as a flag: `true`, or a number that is not 0.
    pub fn flag(&self) -> bool {
        match self {
            Loose::Bool(b) => *b,
            other => other.number().is_some_and(|v| v != 0.0),
        }
    }

    /// The value as text; whole numbers are written out.
    pub fn text(&self) -> Option<String> {
        match self {
            Loose::Text(t) => Some(t.clone()),
            Loose::Int(v) => Some(v.to_string()),
            _ => None,
        }
    }
}

impl fmt::Display for Loose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loose::None => f.write_str("none"),
            Loose::Int(v) => v.fmt(f),
            Loose::Float(v) => v.fmt(f),
            Loose::Bool(v) => v.fmt(f),
            Loose::Text(t) => match self.number() {
                Some(v) => v.fmt(f),
                None => write!(f, "{t:?}"),
            },
        }
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Loose, E> {
        Ok(Loose::Bool(v))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Loose, E> {
        Ok(Loose::Int(v))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Loose, E> {
        Ok(i64::try_from(v).map_or(Loose::Float(v as f64), Loose::Int))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Loose, E> {
        Ok(Loose::Float(v))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Loose, E> {
        Ok(Loose::Text(v.to_owned()))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Loose, E> {
        Ok(Loose::None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::None)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Loose::None)
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(LooseVisitor)
    }
}

/// A `bbox`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum RawBox {
    #[default]
    Missing,
    /// Four numbers, possibly not finite.
    Four([f64; 4]),
    /// Anything else, with its number of elements.
    Other(usize),
}

struct BoxVisitor;

impl<'de> Visitor<'de> for BoxVisitor {
    type Value = RawBox;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a box")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawBox, A::Error> {
        let (mut v, mut n, mut good) = ([0.0; 4], 0, true);
        while let Some(x) = seq.next_element::<Loose>()? {
            // Some programs write `null` for NaN.
            let x = if x == Loose::None { Some(f64::NAN) } else { x.number() };
            match (n < 4, x) {
                (true, Some(x)) => v[n] = x,
                _ => good = false,
            }
            n += 1;
        }
        Ok(if good && n == 4 { RawBox::Four(v) } else { RawBox::Other(n) })
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<RawBox, E> {
        Ok(RawBox::Other(0))
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<RawBox, E> {
        Ok(RawBox::Other(0))
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<RawBox, E> {
        Ok(RawBox::Other(0))
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<RawBox, E> {
        Ok(RawBox::Other(0))
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<RawBox, E> {
        Ok(RawBox::Other(0))
    }
    fn visit_unit<E: de::Error>(self) -> Result<RawBox, E> {
        Ok(RawBox::Missing)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawBox, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(RawBox::Other(0))
    }
}

impl<'de> Deserialize<'de> for RawBox {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(BoxVisitor)
    }
}

/// A `segmentation`.
#[derive(Debug)]
pub(super) enum RawSegmentation {
    /// An empty list or object.
    Missing,
    /// Lists of numbers, of any length and possibly not finite.
    Polygons(Vec<Vec<f64>>),
    /// An RLE with its height and width.
    Runs {
        size: [u32; 2],
        counts: RawCounts,
    },
    Other,
}

/// The `counts` of an RLE.
#[derive(Debug)]
pub(super) enum RawCounts {
    List(Vec<u32>),
    Text(String),
}

/// A list of numbers, each as [`Loose::number`] reads it. None if an element is not a number; `null` counts as NaN.
struct Numbers(Option<Vec<f64>>);

struct NumbersVisitor;

impl<'de> Visitor<'de> for NumbersVisitor {
    type Value = Numbers;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Numbers, A::Error> {
        let mut list = Some(Vec::new());
        while let Some(x) = seq.next_element::<Loose>()? {
            let x = if x == Loose::None { Some(f64::NAN) } else { x.number() };
            list = list.zip(x).map(|(mut l, x)| {
                l.push(x);
                l
            });
        }
        Ok(Numbers(list))
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(NumbersVisitor)
    }
}

struct SegmentationVisitor;

/// Anything unexpected is an error of serde, which the caller takes for [`RawSegmentation::Other`]. This is safe
/// because the parsed text belongs to one annotation only.
impl<'de> Visitor<'de> for SegmentationVisitor {
    type Value = RawSegmentation;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("polygons or run lengths")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawSegmentation, A::Error> {
        let mut list = Vec::new();
        while let Some(Numbers(polygon)) = seq.next_element()? {
            list.push(polygon.ok_or_else(|| de::Error::custom("not a number"))?);
        }
        Ok(if list.is_empty() { RawSegmentation::Missing } else { RawSegmentation::Polygons(list) })
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawSegmentation, A::Error> {
        let (mut size, mut counts, mut empty) = (None, None, true);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            empty = false;
            match &*key {
                "size" => {
                    let list: Vec<Loose> = map.next_value()?;
                    size = <[Loose; 2]>::try_from(list).ok().and_then(|[h, w]| Some([h.size()?, w.size()?]));
                }
                "counts" => counts = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(match (size, counts) {
            (Some(size), Some(counts)) => RawSegmentation::Runs { size, counts },
            _ if empty => RawSegmentation::Missing,
            _ => RawSegmentation::Other,
        })
    }
}

impl<'de> Deserialize<'de> for RawSegmentation {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(SegmentationVisitor)
    }
}

struct CountsVisitor;

impl<'de> Visitor<'de> for CountsVisitor {
    type Value = RawCounts;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("run lengths")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawCounts, A::Error> {
        let mut list = Vec::new();
        while let Some(x) = seq.next_element::<Loose>()? {
            let length = x.id().and_then(|v| u32::try_from(v).ok());
            list.push(length.ok_or_else(|| de::Error::custom("not a length"))?);
        }
        Ok(RawCounts::List(list))
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<RawCounts, E> {
        Ok(RawCounts::Text(v.to_owned()))
    }
}

impl<'de> Deserialize<'de> for RawCounts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(CountsVisitor)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawImage {
    pub id: Loose,
    pub file_name: Loose,
    pub width: Loose,
    pub height: Loose,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawCategory {
    pub id: Loose,
    pub name: Loose,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawAnnotation<'a> {
    pub id: Loose,
    pub image_id: Loose,
    pub category_id: Loose,
    pub bbox: RawBox,
    pub area: Loose,
    pub iscrowd: Loose,
    pub ignore: Loose,
    #[serde(borrow)]
    pub segmentation: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawFile<'a> {
    pub images: Option<Vec<RawImage>>,
    pub categories: Option<Vec<RawCategory>>,
    #[serde(borrow)]
    pub annotations: Option<Vec<RawAnnotation<'a>>>,
}

/// Reads a file. If that fails, the error names the file (`what` says what it should be) and says what to do.
pub(super) fn read_bytes(path: &Path, what: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::data(path, format!("{what} not found: check the path")),
        _ => Error::data(path, format!("{what} cannot be read ({e}): want a readable JSON file")),
    })
}

/// Parses an annotation file.
pub(super) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<RawFile<'a>> {
    let start = bytes.iter().position(|b| !b.is_ascii_whitespace());
    match start.map(|s| bytes[s]) {
        None => return Err(Error::data(path, "the file is empty: want a COCO annotation file")),
        Some(b'[') => {
            let hint = "the file is a JSON list (detections?): want a COCO annotation file, an object with `images`, \
                        `annotations` and `categories`";
            return Err(Error::data(path, hint));
        }
        _ => {}
    }
    let raw: RawFile = serde_json::from_slice(bytes).map_err(|e| json_error(path, &e))?;
    for (key, missing) in [
        ("images", raw.images.is_none()),
        ("categories", raw.categories.is_none()),
        ("annotations", raw.annotations.is_none()),
    ] {
        if missing {
            let hint =
                format!("no key `{key}`: want a COCO annotation file with `images`, `annotations` and `categories`");
            return Err(Error::data(path, hint));
        }
    }
    Ok(raw)
}

/// An error of serde as one of ours: line, column, and what to do.
pub(super) fn json_error(path: &Path, e: &serde_json::Error) -> Error {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    let action = match e.classify() {
        serde_json::error::Category::Eof => "the file is truncated: copy or write it again",
        serde_json::error::Category::Data => "want COCO's format there",
        _ => "correct the JSON there",
    };
    Error::data(path, format!("line {} column {}: {what}: {action}", e.line(), e.column()))
}

/// Replaces the `NaN` and `Infinity` that Python writes and JSON does not know by strings (`"N"`, `"I"`, `"-I"`) that
/// [`Loose::number`] understands. Their length stays the same, so that lines and columns of errors stay right. A byte
/// order mark becomes spaces.
pub(super) fn make_json(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Cow::Borrowed(bytes);
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        out.to_mut()[..3].fill(b' ');
    }
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'N' if bytes[i..].starts_with(b"NaN") => {
                out.to_mut()[i..i + 3].copy_from_slice(b"\"N\"");
                i += 3;
            }
            b'I' if bytes[i..].starts_with(b"Infinity") => {
                let negative = i > 0 && bytes[i - 1] == b'-';
                let (at, text): (usize, &[u8]) = if negative { (i - 1, b"\"-I\"     ") } else { (i, b"\"I\"     ") };
                out.to_mut()[at..at + text.len()].copy_from_slice(text);
                i += 8;
            }
            _ => i += 1,
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_number_is_read_where_python_wrote_it() {
        let text = br#"{"a NaN": [NaN, Infinity, -Infinity, "\"NaN", 1.5, "x"]}"#;
        let fixed = make_json(text);
        assert_eq!(fixed.len(), text.len());
        let v: std::collections::HashMap<String, Vec<Loose>> = serde_json::from_slice(&fixed).unwrap();
        let v: Vec<_> = v["a NaN"].iter().map(Loose::number).collect();
        assert!(v[0].unwrap().is_nan());
        assert_eq!(v[1..], [Some(f64::INFINITY), Some(f64::NEG_INFINITY), None, Some(1.5), None]);
        assert!(matches!(make_json(b"{\"a\": [1]}"), Cow::Borrowed(_)));
    }

    #[test]
    fn boxes_of_every_kind() {
        let read = |t: &str| serde_json::from_str::<RawBox>(t).unwrap();
        assert_eq!(read("[1, 2.5, 3, 4]"), RawBox::Four([1.0, 2.5, 3.0, 4.0]));
        assert!(matches!(read("[1, 2, null, 4]"), RawBox::Four(b) if b[2].is_nan()));
        assert_eq!(read("[1, 2, 3]"), RawBox::Other(3));
        assert_eq!(read("[1, 2, 3, 4, 5]"), RawBox::Other(5));
        assert!(matches!(read("[1, 2, 3, [4]]"), RawBox::Four(b) if b[3].is_nan()));
        assert_eq!(read("null"), RawBox::Missing);
        assert_eq!(read("\"1,2,3,4\""), RawBox::Other(0));
        assert_eq!(read("{\"x\": 1}"), RawBox::Other(0));
    }

    #[test]
    fn ids_may_be_written_as_floats_or_text() {
        assert_eq!(Loose::Float(3.0).id(), Some(3));
        assert_eq!(Loose::Text("0012".into()).id(), Some(12));
        assert_eq!(Loose::Float(3.5).id(), None);
        assert_eq!(Loose::Bool(true).id(), None);
    }
}
