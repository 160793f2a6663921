//! The programs whose weights are read and written.

use std::fmt;
use std::str::FromStr;

use super::names::{self, Dialect};

/// A program whose weights are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Detectors and ImageNet classifiers of torchvision.
    Torchvision,
    /// Detectors of mmdetection: written for version 3, read from 2 too.
    Mmdetection,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 2] = [Format::Torchvision, Format::Mmdetection];

    /// The program's names for a detector.
    pub(super) fn dialect(self) -> &'static Dialect {
        match self {
            Format::Torchvision => &names::TORCHVISION,
            Format::Mmdetection => &names::MMDETECTION,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Torchvision => "torchvision",
            Format::Mmdetection => "mmdetection",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Format, String> {
        let found = Format::ALL.into_iter().find(|f| f.to_string() == s);
        found.ok_or_else(|| "want torchvision or mmdetection".into())
    }
}
