//! The kernel's command line.

use super::layout;

/// Words that every guest gets, each with its reason.
const BASE: &[&str] = &[
    // Only what is critical goes to the console (a panic, a bug, the agent): a
    // byte is two VM exits. First of all, since the console prints what was
    // logged before when it starts.
    "loglevel=3",
    // The early console writes to the data register without probing a UART,
    // and stays: no serial driver is in the kernel.
    "earlyprintk=ttyS0,keep",
    // A panic restarts at once, and a restart is a write to port 0x64, which
    // the VMM reports as a panic; a triple fault stays distinguishable.
    "panic=-1",
    "reboot=k",
    // The clock is kvm-clock or an invariant TSC; do not watch it for drift.
    "tsc=reliable",
    "no_timer_check",
    // One vCPU is no reason to rewrite every lock prefix of the kernel: a page of
    // text that is never written is shared by all sandboxes of a host.
    "noreplace-smp",
    // Mounting and making namespaces wait for RCU; with so few CPUs an expedited
    // grace period costs nothing and saves several ticks each time.
    "rcupdate.rcu_expedited=1",
    // A report of free pages takes up to 32 blocks, of this order or a larger one,
    // from the allocator until it is answered, and begins when 32 of this order are
    // free (mm/page_reporting.c). From the default order, 9, nearly all of a small
    // guest's memory was out on a report at times, and a process that asked for some
    // was killed. 10 is the largest: what is taken is what was seen to be free.
    "page_reporting.page_reporting_order=10",
    // AppArmor brings the audit subsystem along, whose records nobody in here reads:
    // no thread for it, no socket.
    "audit=0",
    // PID 1.
    "rdinit=/init",
];

/// Spares the guest the look at a bus that is empty and stays so.
const NO_PCI: &str = "pci=off";

/// Enables AppArmor, which is built in and off: CONFIG_LSM of the guest's kernel is empty.
const APPARMOR: &str = "lsm=apparmor";

/// Why there is no command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// Longer than the kernel reads.
    #[error("the kernel command line has {0} bytes; the kernel reads {max}", max = layout::CMDLINE_MAX - 1)]
    TooLong(usize),
    /// Not printable ASCII.
    #[error("the kernel parameter {0:?} holds a character that is not printable ASCII")]
    Character(String),
}

/// What of the command line depends on the machine.
#[derive(Debug, Default)]
pub struct Words<'a> {
    /// How many virtio-mmio devices there are.
    pub devices: usize,
    /// Whether there may be a function on the PCI bus.
    pub pci: bool,
    /// How many of the MP table's CPUs are online, when the others are to come later.
    pub online: Option<u8>,
    /// Whether AppArmor is wanted.
    pub apparmor: bool,
    /// Further words.
    pub extra: &'a [String],
}

/// The command line.
///
/// # Errors
/// When it is too long or holds what the kernel cannot read.
pub fn build(machine: &Words) -> Result<String, CmdlineError> {
    let Words { devices, pci, online, apparmor, extra } = *machine;
    let mut words: Vec<String> = BASE.iter().map(|word| (*word).to_owned()).collect();
    words.extend((!pci).then(|| NO_PCI.to_owned()));
    // The kernel would wait seconds for each of the others.
    words.extend(online.map(|count| format!("maxcpus={count}")));
    for index in 0..devices as u64 {
        let (address, irq) = device_slot(index);
        words.push(format!("virtio_mmio.device=4K@{address:#x}:{irq}"));
    }
    words.extend(apparmor.then(|| APPARMOR.to_owned()));
    words.extend_from_slice(extra);
    for word in &words {
        if !word.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(CmdlineError::Character(word.clone()));
        }
    }
    let line = words.join(" ");
    if line.len() >= layout::CMDLINE_MAX {
        return Err(CmdlineError::TooLong(line.len()));
    }
    Ok(line)
}

/// (guest address, IOAPIC pin) of the virtio-mmio device number `index`.
pub fn device_slot(index: u64) -> (u64, u32) {
    (layout::MMIO + index * layout::MMIO_WINDOW, layout::FIRST_IRQ + index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced() {
        let extra = ["initcall_debug".to_owned()];
        let words =
            Words { devices: 2, pci: true, online: Some(3), apparmor: false, extra: &extra };
        let line = build(&words).unwrap();
        assert!(line.contains("virtio_mmio.device=4K@0xd0000000:5"));
        assert!(line.contains("virtio_mmio.device=4K@0xd0001000:6"));
        assert!(line.contains(" maxcpus=3 ") && line.ends_with("initcall_debug"));
        assert!(!line.contains("lsm=") && !line.contains("pci="));
        let line = build(&Words { apparmor: true, ..Words::default() }).unwrap();
        assert!(line.ends_with(" lsm=apparmor") && !line.contains("maxcpus"));
        assert!(line.contains(" pci=off "));
    }

    #[test]
    fn what_the_kernel_cannot_read_is_refused() {
        let with = |word: String| build(&Words { extra: &[word], ..Words::default() });
        assert!(matches!(with("x".repeat(4096)), Err(CmdlineError::TooLong(_))));
        assert!(matches!(with("a\nb".into()), Err(CmdlineError::Character(_))));
    }
}
