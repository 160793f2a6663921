//! The progress bar of programs that detect objects in many images.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar that counts images. It draws nothing if the error output is not a terminal.
pub fn image_bar(images: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images  {per_sec}  {eta} left");
    ProgressBar::new(images as u64).with_style(style.expect("progress bar: the template is valid"))
}
