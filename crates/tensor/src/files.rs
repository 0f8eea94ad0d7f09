//! Files that somebody named: opening one never waits, and only a plain one is read.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Opens a file for reading. Returns at once, whatever it is: opening a pipe would wait for a writer.
///
/// # Errors
/// Whatever the system says; a symbolic link at the end of the path, unless links are followed.
#[cfg(unix)]
pub fn open(path: &Path, follow_symlinks: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Without O_NONBLOCK, opening a pipe would wait for its other end. On a plain file it means nothing.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | if follow_symlinks { 0 } else { libc::O_NOFOLLOW };
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens a file for reading.
///
/// # Errors
/// Whatever the system says; a symbolic link at the end of the path, unless links are followed.
#[cfg(not(unix))]
pub fn open(path: &Path, follow_symlinks: bool) -> io::Result<File> {
    if !follow_symlinks && fs::symlink_metadata(path)?.file_type().is_symlink() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    File::open(path)
}

/// Opens a plain file for reading and tells its length; links are followed. What is checked is what was opened.
///
/// # Errors
/// Whatever the system says; a directory, a pipe or a device.
pub fn open_plain(path: &Path) -> io::Result<(File, u64)> {
    let file = open(path, true)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok((file, metadata.len()));
    }
    let what = if metadata.is_dir() { "a directory" } else { "a pipe or a device" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}; name a plain file")))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_are_opened_and_nothing_is_waited_for() {
        let directory = std::env::temp_dir().join(format!("infer-accel-files-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (plain, pipe, link) = (directory.join("plain"), directory.join("pipe"), directory.join("link"));
        fs::write(&plain, "four").unwrap();
        let _ = fs::remove_file(&pipe);
        let _ = fs::remove_file(&link);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        assert_eq!(open_plain(&plain).unwrap().1, 4);
        assert_eq!(open_plain(&link).unwrap().1, 4);
        assert!(open(&link, false).is_err());
        for (path, what) in [(&pipe, "a pipe or a device"), (&directory, "a directory")] {
            assert_eq!(open_plain(path).unwrap_err().to_string(), format!("it is {what}; name a plain file"));
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
