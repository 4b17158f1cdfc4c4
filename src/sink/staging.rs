//! A file that appears at its path whole or not at all.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

const PREFIX: &str = ".arrowquant-";
const SUFFIX: &str = ".partial";

/// Called now and then by what takes long, which ends with its error.
pub type GoOn<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A file being written beside its target under a temporary name. Dropped uncommitted it is
/// removed; what a killed process left behind, the next run in that folder removes: a live
/// run holds a lock on its temporary file, a dead one does not.
#[derive(Debug)]
pub struct StagedFile {
    target: PathBuf,
    file: NamedTempFile,
    begun: WriteBack,
}

/// Has the system write to disk what has come together, instead of all at the end, when the run
/// would wait for it.
#[derive(Debug, Default)]
struct WriteBack {
    waiting: u64,
}

impl WriteBack {
    /// Bytes that come together.
    const STEP: u64 = 8 << 20;

    fn wrote(&mut self, file: &File, bytes: u64) {
        self.waiting += bytes;
        if self.waiting < Self::STEP {
            return;
        }
        self.waiting = 0;
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            // SAFETY: the file is open. It is advice, so that it may fail. All of the file, as
            // pieces may come in any order; what is clean costs nothing.
            unsafe {
                libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = file;
    }

    /// Waits until the file is on the disk, `go_on` called in between: syncing it, which can
    /// neither be watched nor stopped, then has little left to do.
    #[cfg(target_os = "linux")]
    fn wait(file: &File, target: &Path, go_on: GoOn<'_>) -> Result<()> {
        use std::os::fd::AsRawFd;
        const ALL: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let len = file.metadata().map_or(0, |status| status.len());
        for offset in (0..len).step_by(Self::STEP as usize) {
            let (fd, offset, step) = (file.as_raw_fd(), offset as i64, Self::STEP as i64);
            // SAFETY: the file is open.
            let done = unsafe { libc::sync_file_range(fd, offset, step, ALL) };
            let error = io::Error::last_os_error();
            // A failure to write is told once, so perhaps not to the sync that follows; others
            // are of file systems that know no ranges.
            let lost = [libc::EIO, libc::ENOSPC, libc::EDQUOT];
            if done != 0
                && error
                    .raw_os_error()
                    .is_some_and(|code| lost.contains(&code))
            {
                return Err(Error::io(target, "write")(error));
            }
            go_on()?;
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn wait(_: &File, _: &Path, go_on: GoOn<'_>) -> Result<()> {
        go_on()
    }
}

impl StagedFile {
    /// Starts a file that is to become `target`; where that is a link, what it leads to.
    ///
    /// # Errors
    /// The target's folder does not exist or cannot be written to, or the target is a folder, a
    /// device or a link in a circle.
    pub fn create(target: &Path) -> Result<Self> {
        let target = &end_of_links(target)?;
        if target.file_name().is_none() || target.is_dir() {
            return Err(Error::file(target, "cannot write here: it is a folder"));
        }
        // Such as /dev/null or NUL, in whose place nobody wants a file.
        if is_device(target) || target.exists() && !target.is_file() {
            return Err(Error::file(
                target,
                "cannot write here: it is not a regular file",
            ));
        }
        // Windows puts no other file in its place, which is to be known before the work.
        if cfg!(windows) && target.metadata().is_ok_and(|m| m.permissions().readonly()) {
            return Err(Error::file(target, "cannot write here: it is read-only"));
        }
        let folder = folder_of(target);
        if !folder.is_dir() {
            return Err(Error::file(
                target,
                format!("cannot write here: there is no folder {}", folder.display()),
            ));
        }
        remove_stale(folder);
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(PREFIX).suffix(SUFFIX);
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            let file = builder
                .make_in(folder, |path| options.open(path))
                .map_err(Error::io(target, "create a temporary file beside it"))?;
            // Some file systems know no locks; their temporaries are never taken for stale.
            let _ = file.as_file().lock();
            // Another run may have taken it for stale before the lock.
            if file.path().exists() {
                return Ok(Self {
                    target: target.to_owned(),
                    file,
                    begun: WriteBack::default(),
                });
            }
        }
    }

    /// The path the file will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        positioned::write(self.file.as_file(), bytes, offset)?;
        self.begun.wrote(self.file.as_file(), bytes.len() as u64);
        Ok(())
    }

    /// Drops what was written from `end` on.
    ///
    /// # Errors
    /// The disk fails.
    pub fn cut(&mut self, end: u64) -> io::Result<()> {
        match self.file.as_file().metadata()?.len() > end {
            true => self.file.as_file().set_len(end),
            false => Ok(()),
        }
    }

    /// Reads back what was written.
    ///
    /// # Errors
    /// Nothing was written there, or the disk fails.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        positioned::read(self.file.as_file(), bytes, offset)
    }

    /// Commits the file; `go_on` is called now and then while the system writes the file
    /// to the disk.
    ///
    /// # Errors
    /// As [`StagedFile::commit`], or `go_on` fails.
    pub(crate) fn commit_with(self, go_on: GoOn<'_>) -> Result<()> {
        WriteBack::wait(self.file.as_file(), &self.target, go_on)?;
        self.commit()
    }

    /// Syncs the file and puts it at its path, replacing what was there.
    ///
    /// # Errors
    /// The file cannot be synced or renamed; the target is then as it was.
    pub fn commit(self) -> Result<()> {
        self.publish(rename)
    }

    /// Commits the file only if nothing is at the path yet.
    ///
    /// # Errors
    /// As [`StagedFile::commit`], or something is there.
    pub fn commit_new(self) -> Result<()> {
        self.publish(|path, target| {
            // Windows has no long paths for tempfile, but no links on some file systems.
            #[cfg(windows)]
            match std::fs::hard_link(&path, target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
                done => return done,
            }
            path.persist_noclobber(target).map_err(|error| error.error)
        })
    }

    fn publish(mut self, put: impl FnOnce(TempPath, &Path) -> io::Result<()>) -> Result<()> {
        let sync = |file: &mut NamedTempFile| -> io::Result<()> {
            file.flush()?;
            file.as_file().sync_all()
        };
        sync(&mut self.file).map_err(Error::io(&self.target, "write"))?;
        let Self { target, file, .. } = self;
        let (file, path) = file.into_parts();
        put(path, &target).map_err(Error::io(&target, "put the finished file here"))?;
        // Windows lets nobody read it before, and takes its time where a file is closed locked.
        let _ = file.unlock();
        // The rename lasts once the folder is synced; not every system can open a folder.
        if let Ok(folder) = File::open(folder_of(&target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.as_file_mut().write(bytes)?;
        self.begun.wrote(self.file.as_file(), written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

/// Reading and writing by position.
mod positioned {
    use std::fs::File;
    use std::io;

    #[cfg(unix)]
    pub(super) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }

    #[cfg(unix)]
    pub(super) fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
    }

    #[cfg(windows)]
    pub(super) fn write(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => (bytes, offset) = (&bytes[n..], offset + n as u64),
            }
        }
        Ok(())
    }

    #[cfg(windows)]
    pub(super) fn read(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => (bytes, offset) = (&mut bytes[n..], offset + n as u64),
            }
        }
        Ok(())
    }
}

/// Renames a file as tempfile would, but also to long paths, and over a file that others read: the standard
/// library has Windows take them.
fn rename(mut path: TempPath, target: &Path) -> io::Result<()> {
    let mut done = std::fs::rename(&path, target);
    // ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION: something looks into the file there, if only
    // for a moment, as virus scanners do.
    let busy = |error: &io::Error| matches!(error.raw_os_error(), Some(5 | 32));
    let tries = if cfg!(windows) { 50 } else { 0 };
    for _ in 0..tries {
        if !done.as_ref().is_err_and(busy) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        done = std::fs::rename(&path, target);
    }
    path.disable_cleanup(done.is_ok());
    done
}

/// Where links lead, be there a file or none yet: renaming over a link would replace the link.
fn end_of_links(target: &Path) -> Result<PathBuf> {
    // As many as systems follow.
    const MOST: usize = 40;
    let mut path = target.to_owned();
    for _ in 0..MOST {
        match std::fs::read_link(&path) {
            Ok(next) => path = folder_of(&path).join(next),
            // No link; anything else that is wrong with it is seen when it is written to.
            Err(_) => return Ok(path),
        }
    }
    let reason = "cannot write here: it is a link that leads back to itself";
    Err(Error::file(target, reason))
}

/// Whether a name stands for a device in every folder.
fn is_device(target: &Path) -> bool {
    let whole = std::path::absolute(target).unwrap_or_default();
    cfg!(windows) && whole.as_os_str().as_encoded_bytes().starts_with(br"\\.\")
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes temporaries whose run is dead. Failing to is no reason not to write.
pub fn remove_stale(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || !name.ends_with(SUFFIX) {
            continue;
        }
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::options().write(true).open(entry.path()) else {
            continue;
        };
        match file.try_lock() {
            Ok(()) => drop(std::fs::remove_file(entry.path())),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_at_the_path_until_commit() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out.parquet");
        std::fs::write(&target, "old").unwrap();
        let mut staged = StagedFile::create(&target).unwrap();
        staged.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        staged.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out.parquet"]);
    }

    #[test]
    fn an_uncommitted_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut staged = StagedFile::create(&folder.path().join("out.parquet")).unwrap();
        staged.write_all(b"half").unwrap();
        drop(staged);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn stale_temporaries_go_and_live_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let live = StagedFile::create(&folder.path().join("a.parquet")).unwrap();
        std::fs::write(folder.path().join(".arrowquant-dead.partial"), "x").unwrap();
        std::fs::write(folder.path().join("other.partial"), "x").unwrap();
        let second = StagedFile::create(&folder.path().join("b.parquet")).unwrap();
        assert_eq!(names(folder.path()).len(), 3);
        live.commit().unwrap();
        second.commit().unwrap();
        assert_eq!(
            names(folder.path()),
            ["a.parquet", "b.parquet", "other.partial"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_file_has_the_usual_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let usual = folder.path().join("usual");
        File::create(&usual).unwrap();
        let target = folder.path().join("out");
        StagedFile::create(&target).unwrap().commit().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&target), mode(&usual));
    }
}
