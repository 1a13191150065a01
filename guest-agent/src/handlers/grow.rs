//! Grow: takes CPUs and memory into use that the host added to the machine.
//!
//! Nothing in the machine announces either (there is no ACPI), so that the kernel is told
//! by sysfs: see Documentation/admin-guide/mm/memory-hotplug.rst, "probe", and
//! Documentation/core-api/cpu_hotplug.rst. What is in use already is left as it is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use protocol::agent::{AgentError, ErrorKind, Return};
use protocol::machine::{AddedMemory, MAX_VCPUS};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{SystemContext, error};
use crate::roles::channel::{self, Channel, FromRole, RoleHandle};
use crate::state::reap;
use crate::sys::clone::{Request, Side, clone, exit};
use crate::sys::{poll, process};

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// How long it may take: less than the host waits.
const PATIENCE: Duration = Duration::from_secs(45);

/// Done by a process of its own: the kernel works while one writes, and takes a lock that
/// a container which may write to /sys can hold.
pub async fn handle(memory: Option<AddedMemory>, vcpus: u8) -> Result<Return, AgentError> {
    let (ours, theirs) = channel::pair().system(|| "creating a socket pair".into())?;
    let helper = match clone(&Request::default()).system(|| "cloning a helper".into())? {
        Side::Parent(_, pidfd) => Helper::of(pidfd)?,
        Side::Child => {
            drop(ours);
            let told = match grow(memory, vcpus) {
                Ok(()) => FromRole::Ready,
                Err(error) => FromRole::Failed(error),
            };
            let _ = Channel::new(theirs).send(&told, None);
            exit(0)
        }
    };
    drop(theirs);
    let ours = RoleHandle::new(ours).system(|| "watching a socket".into())?;
    let told = tokio::time::timeout(PATIENCE, ours.receive()).await;
    drop(helper);
    match told.map(|told| told.system(|| "listening to a helper".into())) {
        Ok(Ok(Some((FromRole::Ready, _)))) => Ok(Return::Done),
        Ok(Ok(Some((FromRole::Failed(error), _)))) => Err(error),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) => Err(error(ErrorKind::System, "a helper ended without a word")),
        Err(_) => {
            let message = format!(
                "the guest's kernel did not take CPUs and memory into use within {} s",
                PATIENCE.as_secs()
            );
            Err(error(ErrorKind::System, message))
        }
    }
}

/// A process that ends with its owner, also when the host has hung up.
struct Helper(Option<AsyncFd<OwnedFd>>);

impl Helper {
    fn of(pidfd: OwnedFd) -> Result<Helper, AgentError> {
        let watched = poll::watch(pidfd, Interest::READABLE);
        watched.map(|pidfd| Helper(Some(pidfd))).system(|| "watching a helper".into())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else { return };
        let _ = process::signal(pidfd.get_ref().as_fd(), libc::SIGKILL);
        // Where it waits for a CPU it dies later.
        tokio::task::spawn_local(async move { reap(&pidfd).await });
    }
}

/// Memory first: it is what a machine lacks that is short of it.
fn grow(memory: Option<AddedMemory>, vcpus: u8) -> Result<(), AgentError> {
    if let Some(added) = memory {
        let size = block_size()?;
        blocks(added, size)?.try_for_each(|block| add_block(block, size))?;
    }
    (1..vcpus.min(MAX_VCPUS)).try_for_each(bring_online)
}

fn block_size() -> Result<u64, AgentError> {
    let path = Path::new(MEMORY).join("block_size_bytes");
    let text = read(&path)?;
    let size = u64::from_str_radix(text.trim(), 16).ok().filter(|size| size.is_power_of_two());
    size.ok_or_else(|| error(ErrorKind::System, format!("{} says {text:?}", path.display())))
}

/// Addresses of the kernel's blocks of memory in a range.
fn blocks(added: AddedMemory, size: u64) -> Result<impl Iterator<Item = u64>, AgentError> {
    let end = added.start.checked_add(added.bytes);
    let whole = |value: u64| value.is_multiple_of(size);
    match end {
        Some(end) if whole(added.start) && whole(added.bytes) => {
            Ok((added.start / size..end / size).map(move |block| block * size))
        }
        _ => {
            let message = format!(
                "memory of {:#x} bytes at {:#x} is not whole blocks of {size:#x} bytes",
                added.bytes, added.start
            );
            Err(error(ErrorKind::Invalid, message))
        }
    }
}

/// As the kernel is configured it brings a block online as soon as it knows of it. But it
/// does not say when that fails: it may lack the room for what it notes of the pages.
fn add_block(address: u64, size: u64) -> Result<(), AgentError> {
    let state = Path::new(MEMORY).join(format!("memory{}/state", address / size));
    match std::fs::exists(&state) {
        Ok(true) => {}
        Ok(false) => write(&Path::new(MEMORY).join("probe"), &format!("{address:#x}"))?,
        Err(cause) => return Err(cause).system(|| state.display().to_string()),
    }
    if read(&state)?.trim() == "online" { Ok(()) } else { write(&state, "online") }
}

fn bring_online(cpu: u8) -> Result<(), AgentError> {
    let path = Path::new(CPUS).join(format!("cpu{cpu}/online"));
    if read(&path)?.trim() == "1" { Ok(()) } else { write(&path, "1") }
}

fn read(path: &Path) -> Result<String, AgentError> {
    std::fs::read_to_string(path).system(|| path.display().to_string())
}

fn write(path: &Path, value: &str) -> Result<(), AgentError> {
    std::fs::write(path, value).system(|| format!("writing {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_added() {
        let size = 128 << 20;
        let range = |start, bytes| blocks(AddedMemory { start, bytes }, size);
        let all: Vec<_> = range(4 << 30, 256 << 20).unwrap().collect();
        assert_eq!(all, [4 << 30, (4 << 30) + size]);
        assert!(range((4 << 30) + 4096, size).is_err());
        assert!(range(4 << 30, size + 1).is_err());
        assert!(range(u64::MAX / size * size, size).is_err());
    }
}
