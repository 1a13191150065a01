//! `qemu -M microvm` with our kernel: what another VMM costs on the same host.

use std::path::Path;
use std::process::Command;

/// The machine as it is.
pub const PLAIN: &[&str] = &["-M", "microvm"];
/// Without what our kernel does not need. Its devices are then named on the kernel's command
/// line, where a kernel without ACPI finds them.
pub const TUNED: &[&str] = &[
    "-M",
    "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off,auto-kernel-cmdline=on",
    "-no-user-config",
];

/// For the kernel.
const APPEND: &str = "earlyprintk=ttyS0,keep panic=-1 reboot=t tsc=reliable no_timer_check \
                      noreplace-smp rcupdate.rcu_expedited=1 pci=off rdinit=/init";

/// QEMU with one vCPU and `mib` of memory, which boots `kernel` with `initrd`. The words `append`
/// come first: an early console prints what was logged before it at the level known by then.
pub fn command(machine: &[&str], kernel: &Path, initrd: &Path, mib: u32, append: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(machine)
        .args(["-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-m", &mib.to_string(), "-append", &format!("{append} {APPEND}")])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd);
    command
}
