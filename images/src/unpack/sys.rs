//! Extended attributes: the one thing that neither std nor nix wraps.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Sets an attribute of an open file or directory.
pub(super) fn fsetxattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated, `value` is valid for `value.len()`
    // bytes, and both outlive the call; the kernel only reads them.
    let result = unsafe {
        libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    check(result)
}

/// Sets an attribute of `name` in the open directory `dir`, not following it.
///
/// There is no `setxattrat` before Linux 6.13; the way through `/proc` has
/// the same guarantee, since `name` is a single component.
pub(super) fn lsetxattrat(
    dir: BorrowedFd<'_>,
    name: &Path,
    attribute: &[u8],
    value: &[u8],
) -> io::Result<()> {
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attribute = CString::new(attribute)?;
    // SAFETY: both strings are NUL-terminated, `value` is valid for
    // `value.len()` bytes, and all outlive the call; the kernel only reads.
    let result = unsafe {
        libc::lsetxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    check(result)
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads an attribute, links not followed.
    pub(in super::super) fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let name = CString::new(name).unwrap();
        let mut value = vec![0u8; 4096];
        // SAFETY: both strings are NUL-terminated and `value` is writable for
        // the length given; all outlive the call.
        let n = unsafe {
            libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(n).ok()?);
        Some(value)
    }
}
