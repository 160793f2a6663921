//! The classes of the built-in data set.

/// Class of a shape.
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
    /// All classes. The category id in the annotation files is the index in this list plus one.
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

    /// Category id in the annotation files.
    pub fn id(self) -> u32 {
        self as u32 + 1
    }
}
