//! Atomic writes: a file holds either its old content or all of the new one, never a part.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// Writes a file of a run so that `path` holds either its old content or all of the new one, even after a crash: `body`
/// writes a temporary file in the same folder, which is synced and renamed to `path`; then the folder is synced. On an
/// error the temporary file is removed. At most one process at a time may write `path`.
///
/// Errors: `Value` with the reason, and with advice if the disk is full.
pub fn write_atomic(path: &Path, body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    replace(path, Kind::Run, body)
}

/// Writes a file like [`write_atomic`], but the file is readable by every user whatever the umask says, and several
/// processes may write the same `path`: two runs can create the same built-in data set.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, Kind::Public, |file| file.write_all(bytes))
}

/// Makes `to` a second hard link to `from`, atomically. Copies the file if the file system has no hard links.
pub fn link_atomic(from: &Path, to: &Path) -> Result<()> {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary =
        TempPath::try_from_path(to.with_file_name(format!(".{name}.tmp"))).map_err(|error| Error::io(to, error))?;
    let _ = fs::remove_file(&temporary);
    match fs::hard_link(from, &temporary) {
        // Renaming a link onto another link to the same file does nothing and keeps both names; dropping `temporary`
        // then removes the first.
        Ok(()) => fs::rename(&temporary, to).map_err(|error| Error::io(to, error)),
        Err(_) => {
            let mut source = File::open(from).map_err(|error| Error::io(from, error))?;
            write_atomic(to, |file| io::copy(&mut source, file).map(|_| ()))
        }
    }
}

/// The folder that holds a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Who writes and who reads a file.
#[derive(Clone, Copy)]
enum Kind {
    /// Written by the one process that holds the run; the umask decides who may read it.
    Run,
    /// Written by any process, readable by every user.
    Public,
}

impl Kind {
    /// Creates the temporary file for the file `name` of `folder`. Dropping it removes it.
    fn create(self, folder: &Path, name: &str) -> io::Result<NamedTempFile> {
        match self {
            // A fixed name: the next write replaces what a killed process left.
            Kind::Run => {
                let path = TempPath::try_from_path(folder.join(format!(".{name}.tmp")))?;
                Ok(NamedTempFile::from_parts(File::create(&path)?, path))
            }
            // A random name: with a fixed one, a second process would write into the file that the first one renames.
            Kind::Public => {
                let file = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(folder)?;
                set_public(file.as_file())?;
                Ok(file)
            }
        }
    }

    /// What to do after the disk is full.
    fn next_step(self) -> &'static str {
        match self {
            Kind::Run => "continue with --resume",
            Kind::Public => "try again",
        }
    }
}

fn replace(path: &Path, kind: Kind, body: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed = |message: String| Error::Value { what: path.display().to_string(), message };
    let name = path.file_name().ok_or_else(|| failed("not a file name".into()))?;
    let folder = folder_of(path);
    let written = kind.create(folder, &name.to_string_lossy()).and_then(|mut temporary| {
        let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        body(&mut buffered)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        temporary.persist(path).map_err(|failed| failed.error)
    });
    written.map_err(|error| failed(not_written(path, kind, &error)))?;
    sync_folder(folder).map_err(|error| failed(format!("written, but its folder could not be synced: {error}")))
}

/// Lets every user read a file: a temporary file is private at first.
fn set_public(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// The message for a failed write.
fn not_written(path: &Path, kind: Kind, error: &io::Error) -> String {
    let old = if path.is_file() { "; the file of that name is the old one, untouched" } else { "" };
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
            format!(": free some space, then {}", kind.next_step())
        }
        _ => String::new(),
    };
    format!("not written: {error}{old}{hint}")
}

/// Syncs a folder, so that a rename survives a power failure. Only Unix can do that, and not on every file system.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
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
            let error = write_atomic(&path, |file| Full { inner: file, left }.write_all(&content)).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(text.contains("not written: ") && text.contains("free some space"), "{text}");
            assert_eq!(text.contains("is the old one, untouched"), old.is_some(), "{text}");
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
            assert_eq!(names(folder.path()).len(), usize::from(old.is_some()), "the temporary file is removed");
        }
        // A file that a killed process left is replaced.
        fs::write(folder.path().join(".x.tmp"), "half").unwrap();
        write_atomic(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(names(folder.path()), ["x"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(write_atomic(&folder.path().join("none/x"), |_| Ok(())).is_err());
        assert!(write_atomic(Path::new("/"), |_| Ok(())).is_err());
    }

    #[test]
    fn public_files_are_for_everyone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_public(&path, b"1").unwrap();
        write_public(&path, b"2").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path()).len()), ("2", 1));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert!(write_public(&folder.path().join("none/x"), b"").is_err());
    }

    #[test]
    fn links_keep_their_content_when_the_first_name_moves_on() {
        let folder = tempfile::tempdir().unwrap();
        let (last, best) = (folder.path().join("last"), folder.path().join("best"));
        write_atomic(&last, |file| file.write_all(b"1")).unwrap();
        link_atomic(&last, &best).unwrap();
        link_atomic(&last, &best).unwrap();
        write_atomic(&last, |file| file.write_all(b"2")).unwrap();
        assert_eq!(fs::read_to_string(&best).unwrap(), "1");
        link_atomic(&last, &best).unwrap();
        assert_eq!(fs::read_to_string(&best).unwrap(), "2");
        assert_eq!(names(folder.path()).len(), 2);
    }
}
