//! Grow: takes CPUs and memory into use that the host added to the machine.
//!
//! Nothing in the machine announces either (there is no ACPI), so that the kernel is told
//! by sysfs: see Documentation/admin-guide/mm/memory-hotplug.rst, "probe", and
//! Documentation/core-api/cpu_hotplug.rst. What is in use already is left as it is.

use std::io::ErrorKind as Io;
use std::path::Path;

use protocol::agent::{AgentError, ErrorKind, Return};
use protocol::machine::{AddedMemory, MAX_VCPUS};

use crate::error::{SystemContext, error};

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// Memory first: it is what a machine lacks that is short of it.
pub async fn handle(memory: Option<AddedMemory>, vcpus: u8) -> Result<Return, AgentError> {
    if let Some(added) = memory {
        let size = block_size()?;
        for block in blocks(added, size)? {
            add_block(block, size)?;
            // Each takes milliseconds; others have calls under way.
            tokio::task::yield_now().await;
        }
    }
    for cpu in 1..vcpus.min(MAX_VCPUS) {
        bring_online(cpu)?;
        tokio::task::yield_now().await;
    }
    Ok(Return::Done)
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

/// The kernel has the block online as soon as it knows of it, as it is configured.
fn add_block(address: u64, size: u64) -> Result<(), AgentError> {
    let state = Path::new(MEMORY).join(format!("memory{}/state", address / size));
    match std::fs::read_to_string(&state) {
        Ok(text) if text.trim() == "online" => return Ok(()),
        // An earlier call found no room for what the kernel notes of its pages.
        Ok(_) => return write(&state, "online"),
        Err(cause) if cause.kind() == Io::NotFound => {}
        Err(cause) => return Err(cause).system(|| state.display().to_string()),
    }
    write(&Path::new(MEMORY).join("probe"), &format!("{address:#x}"))
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
