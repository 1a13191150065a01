//! Names of the containers of a network, in the /etc/hosts of each of them.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::files::{paths, replace};
use super::record::{self, Record};
use super::{NetworkError, Networks};
use crate::dirs::Dirs;
use crate::files::FileError;

/// Before it, a file is its container's own.
const MARK: &str = "# Containers of the same network, kept up to date by bulkhead:\n";
/// Longest file of a container's own that is written on.
const MAX_OWN: u64 = 64 << 10;

/// A container that is in a network now.
struct Member {
    id: String,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Writes the names of all members of `network` to each one's file.
pub(super) fn refresh(dirs: &Dirs, network: &str) -> Result<(), NetworkError> {
    let _lock = Networks::new(dirs.clone()).lock()?;
    let members: Vec<Member> = attached(dirs)?
        .into_iter()
        .filter(|(_, record)| record.list.name == network)
        .map(|(id, record)| Member { id, addresses: record.addresses(), names: record.names })
        .collect();
    for member in &members {
        let others = members.iter().filter(|other| other.id != member.id);
        let hosts = paths(&dirs.container_lib(&member.id)).hosts;
        if let Err(error) = update(&hosts, &lines(others)) {
            // One that goes at this moment, or that has made something strange of its file.
            tracing::debug!("{}", crate::container::chain(&error));
        }
    }
    Ok(())
}

/// All containers that are in a network, as far as they can be read.
pub(super) fn attached(dirs: &Dirs) -> Result<Vec<(String, Record)>, NetworkError> {
    // Of an earlier boot, nothing is left but a file.
    let boot = record::this_boot()?;
    let entries = std::fs::read_dir(dirs.containers()).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let ids = ids.filter(|id| crate::id::is_id(id));
    let all = ids.filter_map(|id| Some((record::read(&dirs.container_lib(&id)).ok()??, id)));
    let of_now = all.filter(|(record, _)| record.is_of(&boot));
    Ok(of_now.map(|(record, id)| (id, record)).collect())
}

fn lines<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let mut text = String::new();
    for member in members {
        for address in &member.addresses {
            text.push_str(&format!("{address}\t{}\n", member.names.join(" ")));
        }
    }
    text
}

fn update(path: &Path, lines: &str) -> Result<(), NetworkError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut options = std::fs::File::options();
        let file = options.read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        let mut bytes = Vec::new();
        let limit = MAX_OWN + (1 << 20);
        match file.take(limit).read_to_end(&mut bytes)? as u64 == limit {
            true => Err(std::io::Error::other("it has become too long")),
            false => Ok(bytes),
        }
    };
    let mut text = read().map_err(FileError::access(path))?;
    if let Some(mark) = find(&text, MARK.as_bytes()) {
        text.truncate(mark);
    }
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    if !lines.is_empty() {
        text.extend(MARK.bytes().chain(lines.bytes()));
    }
    replace(path, &text)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n10.0.0.1 mine").unwrap();
        update(&path, "10.0.0.2\tb\n").unwrap();
        let own = "127.0.0.1 localhost\n10.0.0.1 mine\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{own}{MARK}10.0.0.2\tb\n"));
        update(&path, "10.0.0.3\tc\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{own}{MARK}10.0.0.3\tc\n"));
        update(&path, "").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), own);
        std::fs::write(&path, vec![b'x'; 2 << 20]).unwrap();
        assert!(update(&path, "").unwrap_err().to_string().contains("hosts"));
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert!(update(&dir.path().join("link"), "").is_err());
    }
}
