//! Names of tar entries: from the bytes of a stranger to a relative path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Limits, Refusal};

/// Linux: the longest component and the longest path, in bytes.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4095;
/// Names in messages are cut here; the start is what tells entries apart.
const PRINT_MAX: usize = 200;

/// A name that is relative, free of `.`, `..` and empty components and short
/// enough for the kernel. Empty for the layer's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryName {
    path: PathBuf,
}

impl EntryName {
    pub(crate) fn parse(raw: &[u8], limits: &Limits) -> Result<Self, Refusal> {
        if raw.is_empty() {
            return Err(Refusal::BadName("it is empty"));
        }
        if raw.contains(&0) {
            return Err(Refusal::BadName("it has a NUL byte"));
        }
        if raw[0] == b'/' && !limits.strip_absolute {
            return Err(Refusal::Absolute);
        }
        let mut path = PathBuf::new();
        let mut depth = 0;
        for part in raw.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(Refusal::DotDot),
                _ if part.len() > NAME_MAX => {
                    return Err(Refusal::BadName("a component is longer than 255 bytes"));
                }
                _ => path.push(OsStr::from_bytes(part)),
            }
            depth += 1;
        }
        if path.as_os_str().len() > PATH_MAX {
            return Err(Refusal::BadName("it is longer than 4095 bytes"));
        }
        if depth > limits.max_depth {
            return Err(Refusal::TooDeep(limits.max_depth));
        }
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory and the last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&Path, &OsStr)> {
        Some((self.path.parent()?, self.path.file_name()?))
    }
}

/// A name fit for a terminal: control and non-UTF-8 bytes escaped, shortened.
pub(crate) fn printable(raw: &[u8]) -> String {
    let cut = &raw[..raw.len().min(PRINT_MAX)];
    let more = if raw.len() > PRINT_MAX { "..." } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &[u8]) -> Result<String, Refusal> {
        EntryName::parse(raw, &Limits::default())
            .map(|name| name.path().to_string_lossy().into_owned())
    }

    #[test]
    fn leading_dot_slash_and_doubled_slashes_vanish() {
        assert_eq!(parse(b"./etc//passwd").unwrap(), "etc/passwd");
        assert_eq!(parse(b"./").unwrap(), "");
        assert_eq!(parse(b"a/./b/").unwrap(), "a/b");
        assert_eq!(parse(b"..a/b..").unwrap(), "..a/b..");
    }

    #[test]
    fn escapes_are_refused() {
        for raw in [&b"../x"[..], b"a/../b", b"..", b"a/..", b"./../x"] {
            assert_eq!(parse(raw), Err(Refusal::DotDot));
        }
        assert_eq!(parse(b"/etc/passwd"), Err(Refusal::Absolute));
        assert!(matches!(parse(b""), Err(Refusal::BadName(_))));
        assert!(matches!(parse(b"a\0b"), Err(Refusal::BadName(_))));
        assert!(matches!(parse(&[b'a'; 256]), Err(Refusal::BadName(_))));
        assert!(matches!(parse(&b"abcd/".repeat(1000)), Err(Refusal::BadName(_))));
        assert_eq!(parse(&b"a/".repeat(300)), Err(Refusal::TooDeep(256)));
    }

    #[test]
    fn absolute_names_can_be_stripped_on_request() {
        let limits = Limits { strip_absolute: true, ..Limits::default() };
        let name = EntryName::parse(b"//ko-app/main", &limits).unwrap();
        assert_eq!(name.path(), Path::new("ko-app/main"));
    }

    #[test]
    fn printed_names_cannot_drive_a_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb"), r#""a\x1b[2Jb""#);
        assert!(printable(&[b'x'; 5000]).len() < 210);
    }
}
