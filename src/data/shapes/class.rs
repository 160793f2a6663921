//! The classes of the built-in data set.

/// What a shape is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Circle or ellipse.
    Ellipse,
    /// Square or rectangle.
    Rectangle,
    /// Any triangle that is not too flat.
    Triangle,
    /// Star of five points.
    Star,
    /// Cross of two bars.
    Cross,
    /// Crescent moon.
    Crescent,
}

impl Class {
    /// All classes; the category id in the annotation files is the place in this list plus one.
    pub const ALL: [Class; 6] =
        [Class::Ellipse, Class::Rectangle, Class::Triangle, Class::Star, Class::Cross, Class::Crescent];

    /// Name of the category.
    pub fn name(self) -> &'static str {
        match self {
            Class::Ellipse => "ellipse",
            Class::Rectangle => "rectangle",
            Class::Triangle => "triangle",
            Class::Star => "star",
            Class::Cross => "cross",
            Class::Crescent => "crescent",
        }
    }

    /// COCO category id.
    pub fn id(self) -> u32 {
        self as u32 + 1
    }
}
