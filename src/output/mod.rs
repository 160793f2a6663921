//! What a program leaves behind: messages ([`print`](print()), [`tell`]), files and folders.
//!
//! Files are checked before the work ([`check_files`], [`refuse_existing`], [`make_folder`]) and written whole or not
//! at all ([`write_atomic`], [`write_public`]). The formats of files belong to the modules that define them. Read
//! `atomic.rs` next.

mod atomic;
mod bar;
mod check;
mod print;

pub use atomic::{link_atomic, write_atomic, write_public};
pub use bar::image_bar;
pub use check::{check_files, make_folder, refuse_existing};
pub use print::{ended, print, tell};
