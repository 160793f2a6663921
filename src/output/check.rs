//! Checks of outputs before the work: no result is computed and then lost, and no file of the user is overwritten.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::folder_of;
use crate::error::{Error, Result};

/// Checks the files that a program will write. Each file comes with its option, each input with its description.
///
/// Errors: `Value` if a file is one of the inputs or another output, is a folder, or cannot be written.
pub fn check_files(files: &[(&str, &Path)], inputs: &[(&str, &Path)]) -> Result<()> {
    for (i, (option, path)) in files.iter().enumerate() {
        let refuse = |what: String| Err(Error::value(*option, format!("{} {what}: name another file", path.display())));
        if let Some((what, _)) = inputs.iter().find(|(_, input)| is_same_file(input, path)) {
            return refuse(format!("is {what}"));
        }
        if let Some((other, _)) = files[..i].iter().find(|(_, other)| is_same_file(other, path)) {
            return refuse(format!("is that of {other} too"));
        }
        if let Err(why) = check_writable(path) {
            return Err(Error::value(*option, format!("{}: {why}", path.display())));
        }
    }
    Ok(())
}

/// Refuses a path at which a file, a folder or a link exists.
pub fn refuse_existing(option: &str, path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let kind = if path.is_dir() { "folder" } else { "file" };
    Err(Error::value(option, format!("{} exists already: name another {kind}, or remove it", path.display())))
}

/// Creates a folder and its missing parents, unless it exists, and checks that files can be created in it.
///
/// Errors: `Value` if a file is in the way, or the folder cannot be written.
pub fn make_folder(option: &str, folder: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::value(option, format!("{}{what}", folder.display())));
    if let Some(file) = folder.ancestors().find(|p| p.is_file()) {
        let which = if file == folder { String::new() } else { format!(": {}", file.display()) };
        return refuse(format!("{which} is a file: name a folder"));
    }
    match fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)) {
        Ok(_) => Ok(()),
        Err(e) => refuse(format!(": cannot be written to ({e}): name a folder in which you may write")),
    }
}

/// Tries to open a file for writing. The error says why that fails and what to do. An existing file stays unchanged.
fn check_writable(path: &Path) -> Result<(), String> {
    let tried = match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err("is a folder: name a file".into()),
        Ok(found) if found.is_file() => OpenOptions::new().append(true).open(path).map(drop),
        // A device or a pipe is not tried: opening it can have an effect.
        Ok(_) => Ok(()),
        // A link to a file that does not exist: writing creates that file.
        Err(_) if path.symlink_metadata().is_ok() => Ok(()),
        Err(e) if e.kind() != io::ErrorKind::NotFound && e.kind() != io::ErrorKind::NotADirectory => Err(e),
        Err(_) => {
            let folder = folder_of(path);
            if let Some(file) = folder.ancestors().find(|p| p.is_file()) {
                return Err(format!("{} is a file, not a folder: name another place", file.display()));
            }
            if !folder.is_dir() {
                return Err(format!("there is no folder {}: make it, or name another file", folder.display()));
            }
            let made = OpenOptions::new().write(true).create_new(true).open(path);
            made.and_then(|_| fs::remove_file(path))
        }
    };
    tried.map_err(|e| format!("cannot be written ({e}): name another file"))
}

/// Whether two paths name the same file: the same inode, as the checkpoints of a run are hard links to shared files, or
/// the same full path if one of them does not exist.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
            // Devices and pipes hold no data that writing could destroy.
            return a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino());
        }
    }
    full(a) == full(b)
}

/// The full path with links followed. For a file that does not exist, the full path of its folder and its name.
fn full(path: &Path) -> PathBuf {
    let by_folder = || Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(by_folder).unwrap_or_else(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_written_are_refused_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("in"), "in").unwrap();
        fs::write(path("old"), "old").unwrap();
        fs::hard_link(path("in"), path("in-too")).unwrap();
        let refused = |files: &[(&str, &str)]| {
            let paths: Vec<_> = files.iter().map(|(_, name)| path(name)).collect();
            let files: Vec<_> = files.iter().zip(&paths).map(|((option, _), p)| (*option, p.as_path())).collect();
            check_files(&files, &[("the input", &path("in"))]).map_err(|e| e.to_string())
        };
        assert_eq!(refused(&[("--a", "old"), ("--b", "new"), ("--c", "folder/new")]), Ok(()));
        assert!(!path("new").exists() && fs::read_to_string(path("old")).unwrap() == "old", "nothing is written");
        for (files, text) in [
            (&[("--a", "in")][..], "in is the input: name another file"),
            (&[("--a", "folder/../in")], "in is the input: name another file"),
            (&[("--a", "new"), ("--b", "folder/../new")], "new is that of --a too: name another file"),
            (&[("--a", "old"), ("--b", "old")], "old is that of --a too: name another file"),
            (&[("--a", "folder")], "folder: is a folder: name a file"),
            (&[("--a", "none/new")], "none: make it, or name another file"),
            (&[("--a", "old/new")], "old is a file, not a folder: name another place"),
        ] {
            let error = refused(files).unwrap_err();
            let option = files.last().unwrap().0;
            assert!(error.starts_with(&format!("{option}: ")) && error.ends_with(text), "{error}");
        }
        if cfg!(unix) {
            assert!(refused(&[("--a", "in-too")]).unwrap_err().contains("is the input"), "another link to it");
        }
        if Path::new("/proc/self").is_dir() {
            let error = check_files(&[("--a", Path::new("/proc/x"))], &[]).unwrap_err().to_string();
            assert!(error.contains("cannot be written (") && error.ends_with("name another file"), "{error}");
            check_files(&["--a", "--b"].map(|option| (option, Path::new("/dev/null"))), &[]).unwrap();
        }
    }

    #[test]
    fn folders_are_made_and_nothing_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        make_folder("--out", &path("a/b")).unwrap();
        make_folder("--out", &path("a/b")).unwrap();
        assert_eq!(fs::read_dir(path("a/b")).unwrap().count(), 0);
        fs::write(path("file"), "").unwrap();
        let refused = |p: &Path| make_folder("--out", p).unwrap_err().to_string();
        assert!(refused(&path("file")).ends_with("file is a file: name a folder"), "{}", refused(&path("file")));
        assert!(refused(&path("file/x")).ends_with("file is a file: name a folder"));
        if Path::new("/proc/self").is_dir() {
            assert!(refused(Path::new("/proc/x")).starts_with("--out: /proc/x: cannot be written to ("));
        }
        refuse_existing("OUT", &path("none")).unwrap();
        let exists = |p: &Path| refuse_existing("OUT", p).unwrap_err().to_string();
        assert!(exists(&path("file")).ends_with("exists already: name another file, or remove it"));
        assert!(exists(&path("a")).ends_with("name another folder, or remove it"));
    }
}
