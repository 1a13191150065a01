//! Proportional set size of processes, by what the memory is.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// PSS in KiB.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Guest RAM, the guest's kernel included, in the VMM's mappings.
    pub guest_kib: u64,
    /// The VMM's own: code, heap, stacks, page tables aside.
    pub vmm_own_kib: u64,
    /// The supervisor (monitor) process.
    pub supervisor_kib: u64,
}

/// (guest RAM, everything else) of the VMM `pid`.
fn vmm(pid: u32) -> Result<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("the VMM is gone")?;
    let (mut guest, mut own, mut is_guest) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "Pss:" {
            let kib: u64 = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
            *(if is_guest { &mut guest } else { &mut own }) += kib;
        } else if !first.ends_with(':') {
            is_guest = line.contains("memfd:bulkhead-guest") || line.contains("vmlinux");
        }
    }
    Ok((guest, own))
}

fn pss(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("no Pss line")?;
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).context("no number")
}

/// Memory of one container's two processes.
pub fn of(vmm_pid: u32, supervisor: u32) -> Result<Memory> {
    let (guest_kib, vmm_own_kib) = vmm(vmm_pid)?;
    Ok(Memory { guest_kib, vmm_own_kib, supervisor_kib: pss(supervisor)? })
}
