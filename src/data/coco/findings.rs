//! Findings: everything that is wrong with a data set or worth knowing about it, counted by kind, with the first
//! examples of each kind. Main types: [`FindingKind`], [`Findings`].

use std::collections::BTreeMap;
use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Training refuses the data set.
    Fatal,
    /// The entry is dropped or repaired; training goes on.
    Warning,
    /// Nothing is wrong; worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Fatal => "fatal",
            Severity::Warning => "warning",
            Severity::Info => "info",
        })
    }
}

/// The kinds of findings, in the order in which they are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// `images` is an empty list, or none of its entries can be used.
    NoImages,
    /// `categories` is an empty list, or none of its entries can be used.
    NoCategories,
    /// No annotation is ground truth.
    NoBoxes,
    /// Two entries of `images` have the same id.
    DuplicateImageId,
    /// Two entries of `categories` have the same id and different names.
    DuplicateCategoryId,
    /// An image file does not exist.
    MissingFile,
    /// An image file does not decode.
    UnreadableFile,
    /// An image file has another size than the annotation file says.
    SizeMismatch,
    /// An entry of `images` without a usable `id` or `file_name`.
    BadImageEntry,
    /// Neither the annotation file nor the image file gives the size of an image.
    UnknownSize,
    /// An image without `width` and `height`; both are taken from the image file instead.
    MissingSize,
    /// An image whose `width` or `height` is not a size; both are taken from the image file instead.
    BadSize,
    /// An entry of `categories` without a usable `id`, or a repeated one.
    BadCategoryEntry,
    /// An annotation without a usable `image_id` or `category_id`.
    BadAnnotationEntry,
    /// An annotation of an image that is not listed.
    UnknownImageId,
    /// An annotation of a category that is not listed.
    UnknownCategoryId,
    /// `bbox` is missing or is not four numbers.
    BadBox,
    /// A box with NaN, an infinity or a number beyond [`MAX_COORDINATE`].
    NonFiniteBox,
    /// A box of negative width or height.
    NegativeBox,
    /// A box of width or height 0.
    EmptyBox,
    /// A box wholly outside its image.
    OutsideBox,
    /// A box narrower or lower than one pixel inside the image.
    SmallBox,
    /// `area` is 0, negative or NaN.
    BadArea,
    /// A box that leaves its image by more than a pixel.
    PartlyOutside,
    /// Masks were asked for, but no annotation has one.
    NoMasks,
    /// An annotation without `segmentation`, while others have it.
    MissingMask,
    /// A `segmentation` that is neither polygons nor an RLE.
    BadMask,
    /// A polygon of fewer than three points or of an odd number of coordinates.
    ShortPolygon,
    /// A polygon with NaN, an infinity or a number beyond [`MAX_COORDINATE`].
    NonFinitePolygon,
    /// An RLE of another size than its image.
    MaskSize,
    /// An RLE that does not decode, or whose runs do not add up to its size.
    BadRle,
    /// A mask without a pixel inside its image.
    EmptyMask,
    /// A mask, or a polygon of one, wholly outside its own box.
    MaskOutsideBox,
    /// An annotation that appears twice, with the same id, image, class and box.
    RepeatedAnnotation,
    /// Two different annotations have the same id.
    DuplicateAnnotationId,
    /// Two annotations of one image have the same class and box.
    DuplicateBox,
    /// Two images have the same file name.
    DuplicateFileName,
    /// Two categories have the same name.
    DuplicateCategoryName,
    /// Annotations with `ignore` set.
    IgnoreFlag,
    /// Crowd regions.
    Crowd,
    /// Images with nothing but crowd regions.
    CrowdOnly,
    /// Images without a box to train on.
    NoGroundTruth,
    /// Images below 32 pixels.
    SmallImage,
}

impl FindingKind {
    /// How much this kind matters.
    pub fn severity(self) -> Severity {
        use FindingKind::*;
        match self {
            NoImages | NoCategories | NoBoxes | DuplicateImageId | DuplicateCategoryId | MissingFile
            | UnreadableFile | SizeMismatch => Severity::Fatal,
            NoMasks | DuplicateBox | IgnoreFlag | Crowd | CrowdOnly | NoGroundTruth | SmallImage => Severity::Info,
            _ => Severity::Warning,
        }
    }

    /// Whether the finding is about a mask only, so that the box is used nevertheless.
    pub(super) fn is_of_mask(self) -> bool {
        use FindingKind::*;
        matches!(
            self,
            NoMasks
                | MissingMask
                | BadMask
                | ShortPolygon
                | NonFinitePolygon
                | MaskSize
                | BadRle
                | EmptyMask
                | MaskOutsideBox
        )
    }

    /// Two texts: the problem, and what happens to the entry or what the user should do.
    pub fn text(self) -> (&'static str, &'static str) {
        let (_, what, action) = TEXTS[self as usize];
        (what, action)
    }
}

/// Both texts of [`FindingKind::text`] for each kind, in the order of the kinds.
const TEXTS: [(FindingKind, &str, &str); FindingKind::SmallImage as usize + 1] = {
    use FindingKind::*;
    [
        (NoImages, "no usable image", "list at least one in `images`"),
        (NoCategories, "no usable category", "list at least one in `categories`"),
        (
            NoBoxes,
            "nothing to train on",
            "training refuses a set without ground truth: add objects, or mend what the lines below name",
        ),
        (DuplicateImageId, "image id used twice", "give every image its own id"),
        (DuplicateCategoryId, "category id used for two names", "give every category its own id"),
        (MissingFile, "image file missing", "copy it, correct the image folder, or train with `bad_images = \"skip\"`"),
        (
            UnreadableFile,
            "image file does not decode",
            "copy it again, convert it to JPEG or PNG, or train with `bad_images = \"skip\"`",
        ),
        (
            SizeMismatch,
            "image file of another size than annotated",
            "correct width and height, or the file: boxes would not fit",
        ),
        (
            BadImageEntry,
            "unusable entry in `images`",
            "dropped with its annotations: want a whole number as `id`, and a `file_name`",
        ),
        (
            UnknownSize,
            "image of unknown size",
            "dropped with its annotations: want whole numbers from 1 to 1000000 as `width` and `height`, \
             or a file that tells",
        ),
        (MissingSize, "image without `width` and `height`", "taken from the file"),
        (
            BadSize,
            "image with a `width` or `height` that is no size",
            "taken from the file: want whole numbers from 1 to 1000000",
        ),
        (BadCategoryEntry, "unusable entry in `categories`", "dropped: want a whole number of its own as `id`"),
        (
            BadAnnotationEntry,
            "unusable entry in `annotations`",
            "dropped: want whole numbers as `image_id` and `category_id`",
        ),
        (UnknownImageId, "annotation of an unknown image", "dropped: list the image or delete the annotation"),
        (UnknownCategoryId, "annotation of an unknown category", "dropped: list the category or delete the annotation"),
        (BadBox, "`bbox` is not four numbers", "dropped: want [x, y, width, height]"),
        (NonFiniteBox, "box with NaN, infinity or a number beyond ±1e9", "dropped: correct the numbers"),
        (
            NegativeBox,
            "box of negative width or height",
            "dropped: is it [x0, y0, x1, y1]? COCO wants [x, y, width, height]",
        ),
        (EmptyBox, "box of zero width or height", "dropped"),
        (OutsideBox, "box outside its image", "dropped"),
        (SmallBox, "box below one pixel", "dropped"),
        (BadArea, "`area` not above 0", "dropped, as mmdetection does: correct or delete `area`"),
        (PartlyOutside, "box leaves its image", "clipped to the image"),
        (NoMasks, "no annotation has a `segmentation`", "boxes can be trained, masks cannot"),
        (MissingMask, "annotation without `segmentation`", "not used where masks are trained"),
        (
            BadMask,
            "`segmentation` is neither polygons nor an RLE",
            "not used where masks are trained: want [[x, y, …], …] or {size, counts}",
        ),
        (
            ShortPolygon,
            "polygon of fewer than three points or an odd number of coordinates",
            "that polygon is dropped; an object that has no other is not used where masks are trained",
        ),
        (
            NonFinitePolygon,
            "polygon with NaN, infinity or a number beyond ±1e9",
            "that polygon is dropped; an object that has no other is not used where masks are trained",
        ),
        (
            MaskSize,
            "RLE of another size than its image",
            "not used where masks are trained: correct `size`, which is [height, width], or the image's",
        ),
        (
            BadRle,
            "RLE that does not decode or add up to its size",
            "not used where masks are trained: write `counts` again, down the columns and background first",
        ),
        (
            EmptyMask,
            "mask without a pixel inside its image",
            "used with its box and an empty mask, as mmdetection does: correct or delete it",
        ),
        (MaskOutsideBox, "polygon or mask outside its own box", "used as it is: correct `bbox` or `segmentation`"),
        (RepeatedAnnotation, "annotation repeated word for word", "used once"),
        (DuplicateAnnotationId, "annotation id used twice", "both used: give every annotation its own id"),
        (DuplicateBox, "same class and box twice in an image", "both used"),
        (DuplicateFileName, "file name used by two images", "both used"),
        (DuplicateCategoryName, "category name used twice", "kept apart by id"),
        (IgnoreFlag, "annotation marked `ignore`", "not used in training"),
        (Crowd, "crowd region", "not used in training; ignored matches in evaluation"),
        (CrowdOnly, "image with crowd regions only", "no ground truth in training"),
        (NoGroundTruth, "image without ground truth", "left out of training unless `keep_empty = true`"),
        (SmallImage, "image below 32 pixels", "left out of training unless `min_image_size` is lowered"),
    ]
};

// Checks that the rows are in the order of the kinds: `text` takes the row by its number.
const _: () = {
    let mut i = 0;
    while i < TEXTS.len() {
        assert!(TEXTS[i].0 as usize == i);
        i += 1;
    }
};

/// The largest absolute value that a number of a box or a polygon may have.
pub const MAX_COORDINATE: f64 = 1e9;

/// How many examples of each kind are kept by default.
pub const EXAMPLES: usize = 5;

/// Count and first examples of one kind.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// How many there are.
    pub count: usize,
    /// The first ones, with their ids.
    pub examples: Vec<String>,
}

/// Findings by kind.
#[derive(Clone, Debug)]
pub struct Findings {
    groups: BTreeMap<FindingKind, Group>,
    keep: usize,
}

impl Default for Findings {
    fn default() -> Self {
        Self::new(EXAMPLES)
    }
}

impl Findings {
    /// An empty list that will keep `keep` examples of each kind.
    pub fn new(keep: usize) -> Self {
        Self { groups: BTreeMap::new(), keep }
    }

    /// Counts a finding. `example` is called only while examples are still kept.
    pub fn add(&mut self, kind: FindingKind, example: impl FnOnce() -> String) {
        let group = self.groups.entry(kind).or_default();
        group.count += 1;
        if group.examples.len() < self.keep {
            group.examples.push(example());
        }
    }

    /// Removes all findings of a kind; returns how many there were.
    pub(super) fn remove(&mut self, kind: FindingKind) -> usize {
        self.groups.remove(&kind).map_or(0, |g| g.count)
    }

    /// Number of findings of a kind.
    pub fn count(&self, kind: FindingKind) -> usize {
        self.groups.get(&kind).map_or(0, |g| g.count)
    }

    /// All groups in printing order.
    pub fn groups(&self) -> impl Iterator<Item = (FindingKind, &Group)> {
        self.groups.iter().map(|(k, g)| (*k, g))
    }

    /// The first fatal kind with its first example, as one sentence.
    pub fn fatal(&self) -> Option<String> {
        let (kind, group) = self.groups().find(|(k, _)| k.severity() == Severity::Fatal)?;
        let (what, action) = kind.text();
        let first = group.examples.first().map_or(String::new(), |e| format!(" ({e})"));
        let more = if group.count > 1 { format!(", {} in all", group.count) } else { String::new() };
        Some(format!("{what}{first}{more}: {action}"))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, group) in self.groups() {
            let (what, action) = kind.text();
            writeln!(f, "{:<8}{:>7} × {what}: {action}", kind.severity(), group.count)?;
            for e in &group.examples {
                writeln!(f, "                  {e}")?;
            }
            if group.count > group.examples.len() && !group.examples.is_empty() {
                writeln!(f, "                  … and {} more", group.count - group.examples.len())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_all_and_keeps_the_first() {
        let mut f = Findings::new(2);
        for i in 0..5 {
            f.add(FindingKind::EmptyBox, || format!("annotation {i}"));
        }
        assert_eq!(f.count(FindingKind::EmptyBox), 5);
        assert_eq!(f.groups().next().unwrap().1.examples, ["annotation 0", "annotation 1"]);
        assert!(f.fatal().is_none());
        f.add(FindingKind::DuplicateImageId, || "image 7".into());
        assert!(f.fatal().unwrap().contains("image 7"));
        let text = f.to_string();
        assert!(text.contains("… and 3 more") && text.starts_with("fatal"), "{text}");
    }
}
