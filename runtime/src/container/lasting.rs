//! A container's state on disk: `state.json` while nothing of it runs.
//!
//! Its end must be written on a full disk as well, which the container may have filled. So
//! the file is as long as any state, and while the container runs it lies aside with its
//! blocks, as `state.spare`.

use std::fs::File;
use std::io::ErrorKind::{NotFound, QuotaExceeded, StorageFull};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{ContainerError, State};
use crate::dirs;
use crate::files::{FileError, read_json};

/// Length of the file in bytes: a block of most file systems.
const LENGTH: usize = 4096;
const FILE: &str = "state.json";
const SPARE: &str = "state.spare";

/// The state in `directory`, if nothing ran when it was written.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(directory: &Path) -> Result<Option<State>, FileError> {
    read_json(&directory.join(FILE))
}

/// Takes the state away: whoever finds none after the host was restarted knows that the
/// container ran.
///
/// # Errors
/// Names the file.
pub(super) fn set_aside(directory: &Path) -> Result<(), ContainerError> {
    let file = directory.join(FILE);
    match std::fs::rename(&file, directory.join(SPARE)) {
        Err(error) if error.kind() != NotFound => Err(ContainerError::io(file)(error)),
        _ => Ok(()),
    }
}

/// Writes the state.
///
/// # Errors
/// Names the file.
pub(super) fn write(directory: &Path, state: &State) -> Result<(), ContainerError> {
    let file = directory.join(FILE);
    let mut bytes = serde_json::to_vec_pretty(state)
        .map_err(|source| FileError::Damaged { path: file.clone(), source })?;
    bytes.resize(bytes.len().max(LENGTH), b'\n');
    let spare = directory.join(SPARE);
    match dirs::write_atomic(&file, &bytes) {
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
            over(&spare, &bytes).map_err(|_| ContainerError::io(&file)(error))?;
            std::fs::rename(&spare, &file).map_err(ContainerError::io(file))
        }
        Err(error) => Err(ContainerError::io(file)(error)),
        Ok(()) => match std::fs::remove_file(&spare) {
            Err(error) if error.kind() != NotFound => Err(ContainerError::io(spare)(error)),
            _ => Ok(()),
        },
    }
}

/// Writes into blocks that a file has. Nobody reads the spare one: half of it does no harm.
fn over(spare: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = File::options().write(true).open(spare)?;
    file.write_all_at(bytes, 0)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_while_nothing_runs() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(read(dir.path()).unwrap(), None);
        write(dir.path(), &State::Created).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(State::Created));
        set_aside(dir.path()).unwrap();
        set_aside(dir.path()).unwrap();
        assert_eq!((read(dir.path()).unwrap(), names()), (None, vec![SPARE.into()]));
        let stopped = State::Created.stopped(3, false, Some("why".into()));
        over(&dir.path().join(SPARE), &serde_json::to_vec(&stopped).unwrap()).unwrap();
        std::fs::rename(dir.path().join(SPARE), dir.path().join(FILE)).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(stopped.clone()));
        set_aside(dir.path()).unwrap();
        write(dir.path(), &stopped).unwrap();
        assert_eq!((read(dir.path()).unwrap(), names()), (Some(stopped), vec![FILE.into()]));
    }
}
