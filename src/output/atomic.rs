//! Files that are either old or new, never half.
//!
//! [`write_durably`] is for what a run cannot lose (checkpoints, recipe, log): the file is on the disk when it returns.
//! [`write_atomically`] is for what can be made again (pictures, reports, data sets): it does not wait for the disk,
//! and several processes may write the same file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file so that `path` holds either its old content or all of the new, whatever happens: a temporary file in
/// the same folder, synced, renamed over `path`, the folder synced. On an error the temporary file is removed.
pub fn write_durably(path: &Path, body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed = |message: String| Error::Value { what: path.display().to_string(), message };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed("not a file name".into()));
    };
    let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // One writer a run: a fixed name means that what a killed process left is replaced, not collected.
    let temporary = Temporary(folder.join(format!(".{}.tmp", name.to_string_lossy())));
    let written = File::create(&temporary.0).and_then(|file| {
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        body(&mut buffered)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary.0, path)
    });
    written.map_err(|error| {
        let old = if path.is_file() { "; the file of that name is the old one, untouched" } else { "" };
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                ": free some space, then continue with --resume"
            }
            _ => "",
        };
        failed(format!("not written: {error}{old}{hint}"))
    })?;
    sync_folder(folder).map_err(|error| failed(format!("written, but its folder could not be synced: {error}")))
}

/// The rename itself must survive a power failure too. Only Unix can sync a folder, and not on every file system.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

/// Writes next to `path` and renames, so that a reader never sees half a file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io(dir, e))?;
    file.write_all(bytes).map_err(|e| Error::io(path, e))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt; // a temporary file is private; the data set need not be
        let shared = fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(shared).map_err(|e| Error::io(path, e))?;
    }
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// Gives `to` the content of `from` by a second link (a copy where the file system has no links), atomically.
pub fn link_atomic(from: &Path, to: &Path) -> Result<()> {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = Temporary(to.with_file_name(format!(".{name}.tmp")));
    let _ = fs::remove_file(&temporary.0);
    match fs::hard_link(from, &temporary.0) {
        // Renaming one link over another of the same file does nothing, and leaves both: the guard removes the first.
        Ok(()) => fs::rename(&temporary.0, to).map_err(|error| Error::io(to, error)),
        Err(_) => {
            let mut source = File::open(from).map_err(|error| Error::io(from, error))?;
            write_durably(to, |file| io::copy(&mut source, file).map(|_| ()))
        }
    }
}

/// Removes what is left of a failed write. After the rename there is nothing to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails like a full disk after `left` bytes.
    struct Full<'a> {
        inner: &'a mut dyn Write,
        left: usize,
    }

    impl Write for Full<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.left);
            self.left -= count;
            self.inner.write(&bytes[..count])
        }
        fn flush(&mut self) -> io::Result<()> {
            self.inner.flush()
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let content = vec![3u8; 3 << 20];
        for (left, old) in [(0, None), (1 << 20, None), (0, Some("old")), (5, Some("old")), (2 << 20, Some("old"))] {
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            let error = write_durably(&path, |file| Full { inner: file, left }.write_all(&content)).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(text.contains("not written: ") && text.contains("free some space"), "{text}");
            assert_eq!(text.contains("is the old one, untouched"), old.is_some(), "{text}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
            assert_eq!(names(folder.path()).len(), usize::from(old.is_some()), "the temporary file is removed");
        }
        // What a killed process left is replaced.
        fs::write(folder.path().join(".x.tmp"), "half").unwrap();
        write_durably(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(names(folder.path()), ["x"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(write_durably(&folder.path().join("none/x"), |_| Ok(())).is_err());
        assert!(write_durably(Path::new("/"), |_| Ok(())).is_err());
    }

    #[test]
    fn links_keep_their_content_when_the_first_name_moves_on() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last"), folder.path().join("best"));
        write_durably(&last, |file| file.write_all(b"1")).unwrap();
        link_atomic(&last, &best).unwrap();
        link_atomic(&last, &best).unwrap();
        write_durably(&last, |file| file.write_all(b"2")).unwrap();
        assert_eq!(fs::read_to_string(&best).unwrap(), "1");
        link_atomic(&last, &best).unwrap();
        assert_eq!(fs::read_to_string(&best).unwrap(), "2");
        assert_eq!(names(folder.path()).len(), 2);
    }
}
