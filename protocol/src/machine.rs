//! Runtime <-> VMM: one JSON message per `SOCK_SEQPACKET` packet, file
//! descriptors beside it by `SCM_RIGHTS`.
//!
//! ```text
//! runtime                                bulkhead-vmm
//!    |  Boot(MachineConfig) + fds  ------>  | builds the jail and the machine
//!    |  <------  Event::Running(Timings)    | vCPUs run
//!    |  <------  Event::GuestConnect + fd   | the agent dialled READY_PORT
//!    |  Pause / Resume / ...       ------>  |
//!    |  <------  Reply                      |
//!    |  <------  Event::Exited(ExitReason)  | last message; then the process ends
//! ```
//!
//! Interfaces that come later: the machine has room for `net_slots` on its PCI bus. After
//! [`Request::AttachNet`] the agent has the kernel look at the bus again (/sys/bus/pci/rescan)
//! and find the device `0000:00:N.0`, N being that of [`Reply::Net`] in two hexadecimal
//! digits; before [`Request::DetachNet`] it has the kernel remove it.
//!
//! When the runtime's end closes, the VMM ends: no VMM outlives its supervisor.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Descriptor number of the control socket in the VMM process.
pub const CONTROL_FD: i32 = 3;

/// Descriptors that one packet can carry (SCM_MAX_FD of the kernel).
pub const MAX_FDS: usize = 253;

/// Largest control packet in bytes, either way.
pub const MAX_PACKET: usize = 160 << 10;

/// Most virtual CPUs of a machine: what its MP table has room for.
pub const MAX_VCPUS: u8 = 32;

/// Most interfaces of a machine, those that may come later included.
pub const MAX_NETS: usize = 8;

/// Most pairs of queues of an interface.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// Most prefixes of a [`Guard`].
pub const MAX_PREFIXES: usize = 64;

/// Index into the descriptors that came with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u32);

/// Everything that a machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// [`crate::PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Name in messages and in the host name of the VMM's UTS namespace.
    pub id: String,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs, all online at boot.
    pub vcpus: u8,
    /// Most that the machine can grow to by [`Request::Grow`]: its kernel makes room for
    /// them when it boots. Less than `vcpus`: it cannot.
    #[serde(default)]
    pub max_vcpus: u8,
    /// An open /dev/kvm.
    pub kvm: FdIndex,
    /// The guest kernel: an uncompressed ELF.
    pub kernel: FdIndex,
    /// An uncompressed cpio archive that holds the agent as /init.
    pub initrd: FdIndex,
    /// Words added to the kernel's command line.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// Where the guest's early console goes; without it, only its last lines
    /// are kept, for [`ExitReason::GuestPanic`].
    #[serde(default)]
    pub console: Option<FdIndex>,
    /// Listening Unix stream socket for host-to-guest vsock connections.
    #[serde(default)]
    pub vsock_listener: Option<FdIndex>,
    /// Directories shared by the one virtio-fs device.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Raw disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces that are there at boot.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// How many more can be there at a time, by [`Request::AttachNet`]. At most
    /// [`MAX_NETS`] with `nets`.
    #[serde(default)]
    pub net_slots: u8,
    /// Memory balloon with free-page reporting.
    #[serde(default)]
    pub balloon: bool,
    /// Whether the guest's kernel has AppArmor.
    #[serde(default)]
    pub apparmor: bool,
    /// Whether the guest may dial [`crate::vsock::RESOLVER_PORT`], as often as it likes.
    #[serde(default)]
    pub resolver: bool,
}

/// virtio-fs mount tag of the share tree.
pub const FS_TAG: &str = "bulkhead";

/// What the guest may assume of a share, and so may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareKind {
    /// Never changes while the machine lives: cached for ever.
    Immutable,
    /// Changed by this guest alone: cached, written through.
    Private,
    /// Others may change it at any time: names and attributes are not cached.
    Live,
}

impl ShareKind {
    /// Directory of the share tree under which shares of this kind lie.
    pub fn dir(self) -> &'static str {
        match self {
            ShareKind::Immutable => "immutable",
            ShareKind::Private => "private",
            ShareKind::Live => "live",
        }
    }
}

/// One directory (or single file) of the share tree. In the guest it appears as
/// `<kind dir>/<name>` below the mount of [`FS_TAG`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// One path component.
    pub name: String,
    /// Caching and writability.
    pub kind: ShareKind,
    /// A detached mount (open_tree, id-mapped by mount_setattr).
    pub mount: FdIndex,
    /// Whether `mount` is a single file.
    #[serde(default)]
    pub file: bool,
    /// Refuse writes (the mount itself should be read-only as well).
    #[serde(default)]
    pub read_only: bool,
}

/// A virtio-blk device backed by a raw file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Serial number that the guest reads (at most 20 bytes).
    pub serial: String,
    /// The backing file, opened as `read_only` asks.
    pub file: FdIndex,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// A virtio-net device, whose other end is a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Hardware address of the guest's interface; unicast.
    pub mac: [u8; 6],
    /// Largest packet, without the Ethernet header: 68..=65535.
    pub mtu: u16,
    /// One tap queue per pair of queues, 1..=[`MAX_QUEUE_PAIRS`] and no more than the machine
    /// may have vCPUs. Open /dev/net/tun, attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR;
    /// several are one interface (IFF_MULTI_QUEUE). The VMM sets header size, offloads and
    /// O_NONBLOCK.
    pub taps: Vec<FdIndex>,
    /// What may pass in a second.
    #[serde(default)]
    pub limits: Option<RateLimits>,
    /// What the guest may send.
    #[serde(default)]
    pub guard: Option<Guard>,
}

/// Limits of an interface. Nothing is dropped for them: frames wait on their side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// What the guest receives.
    #[serde(default)]
    pub to_guest: Limit,
    /// What the guest sends.
    #[serde(default)]
    pub from_guest: Limit,
}

/// Limit of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bytes of frames, each with its Ethernet header.
    #[serde(default)]
    pub bytes: Option<Rate>,
    /// Frames. One that is to be cut into segments (GSO) counts once.
    #[serde(default)]
    pub packets: Option<Rate>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens that come in a second; not 0.
    pub per_second: u64,
    /// Tokens that the bucket holds. What comes in two milliseconds is the least.
    pub burst: u64,
}

/// What a guest may send: IPv4, IPv6 and ARP from its own addresses, without VLAN tags.
///
/// The source of a frame must be [`Net::mac`]. An ARP packet's sender must be that and one of
/// the addresses, or, for a probe, 0.0.0.0. IPv6 may also come from the link-local address
/// that follows from the hardware address (RFC 4291, appendix A), and from `::` to link-local
/// multicast (duplicate address detection, RFC 4862). DHCP, which asks from 0.0.0.0, needs
/// that address in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Sources, at most [`MAX_PREFIXES`].
    pub addresses: Vec<Prefix>,
}

/// Addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// One of them.
    pub address: IpAddr,
    /// Leading bits that are the same: at most 32 or 128.
    pub length: u8,
}

/// A message to the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Chosen by the runtime, repeated in the reply.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// What the runtime asks of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Jail yourself, build the machine, run it. First request, once.
    Boot(Box<MachineConfig>),
    /// Stop all vCPUs at an instruction boundary.
    Pause,
    /// Let them run again.
    Resume,
    /// Ask the guest to give back memory: balloon size in MiB.
    Balloon {
        /// Target size.
        mib: u32,
    },
    /// Counters of the machine.
    Stats,
    /// Serve further directories and files. The one descriptor that comes with it is a
    /// detached tree of mounts, in which each has its name; [`Share::mount`] is 0.
    Attach {
        /// All of them, or none.
        shares: Vec<Share>,
    },
    /// Serve some of those no longer, whatever the guest has open of them.
    Detach {
        /// Their names.
        names: Vec<String>,
    },
    /// Give the guest more, up to these: what it has already stays, so that a request
    /// may be repeated. The guest is then to be told ([`crate::agent::Call::Grow`]).
    Grow {
        /// Guest memory in MiB; rounded up as by [`grown_mib`].
        memory_mib: u32,
        /// Virtual CPUs, at most [`MachineConfig::max_vcpus`].
        vcpus: u8,
    },
    /// Put an interface into an empty slot; [`Net::taps`] are descriptors of this message.
    /// Answered by [`Reply::Net`].
    AttachNet {
        /// The device number that it is to have; any that is free if there is none.
        #[serde(default)]
        slot: Option<u8>,
        /// The interface.
        net: Net,
    },
    /// Take an interface away, whatever its driver does, and close its taps. The slot is then
    /// empty. Also for those that were there at boot.
    DetachNet {
        /// As in [`Reply::Net`].
        device: u8,
    },
    /// Counters of all interfaces.
    NetCounters,
    /// End at once; the guest is not asked.
    Kill,
}

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
}

/// Guest memory beyond what the machine was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedMemory {
    /// Guest-physical address.
    pub start: u64,
    /// All that was added so far, in bytes.
    pub bytes: u64,
}

/// The size in MiB of a machine of `present_mib` MiB that is to have `wanted_mib`. Linux
/// takes memory by blocks, see `probe_memory_block_size` in arch/x86/mm/init_64.c:
/// 128 MiB where RAM ends below 64 GiB (a GiB of addresses is not RAM), else up to 2 GiB.
pub fn grown_mib(present_mib: u32, wanted_mib: u32) -> u32 {
    let block = if present_mib < 63 << 10 { 128 } else { 2 << 10 };
    let more = wanted_mib.saturating_sub(present_mib);
    present_mib.saturating_add(more.div_ceil(block).saturating_mul(block))
}

/// A message from the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// Answer to the command with this id.
    Reply {
        /// Of the command.
        id: u64,
        /// Outcome.
        reply: Result<Reply, String>,
    },
    /// Something happened.
    Event(Event),
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// To [`Request::Stats`].
    Stats(Stats),
    /// To [`Request::Grow`].
    Grown {
        /// Of the machine now.
        size: Size,
        /// What of its memory was added, if any.
        added: Option<AddedMemory>,
    },
    /// To [`Request::AttachNet`].
    Net {
        /// N of the guest's PCI device `0000:00:N.0`.
        device: u8,
    },
    /// To [`Request::NetCounters`]: one for each interface, by device number.
    NetCounters(Vec<NetCounters>),
}

/// What passed through an interface since it was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// As in [`Reply::Net`].
    pub device: u8,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Of each pair of queues.
    pub pairs: Vec<PairCounters>,
}

/// Both directions of a pair of queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairCounters {
    /// What the guest received.
    pub to_guest: QueueCounters,
    /// What the guest sent.
    pub from_guest: QueueCounters,
}

/// One queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Frames that passed.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Dropped: the guard forbids them.
    pub guard: u64,
    /// Dropped: no frame, or one that fits nowhere; and buffers that are none.
    pub malformed: u64,
    /// Dropped: the tap refused them (its interface is down, say), or could not be read.
    pub tap: u64,
    /// How often the queue had to wait for a rate limit. Nothing is dropped then.
    pub rate: u64,
}

/// Counters since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Per kind of exit ("io", "mmio", ...): how often a vCPU left the guest
    /// for the VMM.
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Requests that the virtio-fs device served.
    pub fs_requests: u64,
    /// Present size of the balloon in MiB.
    pub balloon_mib: u32,
    /// Bytes that free-page reporting gave back to the host.
    pub reported_bytes: u64,
}

/// Something that happened in the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The vCPUs were started.
    Running(Timings),
    /// The guest connected to a host port; the stream's other end came with
    /// this message.
    GuestConnect {
        /// Port that the guest asked for.
        port: u32,
    },
    /// The machine is gone and the VMM is about to end.
    Exited(ExitReason),
}

/// Microseconds since the process started, per stage of the boot recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// (stage, microseconds since the VMM's start at the stage's end).
    pub stages: Vec<(String, u64)>,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The agent asked for power-off.
    #[error("the guest powered off")]
    PowerOff,
    /// The guest's kernel panicked or restarted itself; the console's last
    /// lines.
    #[error("the guest kernel panicked{}", last_words(console))]
    GuestPanic {
        /// Last lines of the early console.
        console: String,
    },
    /// A vCPU triple-faulted.
    #[error("vCPU {vcpu} triple-faulted{}", last_words(console))]
    TripleFault {
        /// Index of the vCPU.
        vcpu: u8,
        /// Last lines of the early console.
        console: String,
    },
    /// KVM could not run the guest (KVM_EXIT_INTERNAL_ERROR,
    /// KVM_EXIT_FAIL_ENTRY or an unknown exit).
    #[error(
        "KVM gave up on vCPU {vcpu}: {what}. This host's KVM cannot run this guest; \
         `bulkhead doctor` tells whether it is emulated in software"
    )]
    KvmFailure {
        /// Index of the vCPU.
        vcpu: u8,
        /// The exit and its data.
        what: String,
    },
    /// A thread of the VMM failed or panicked.
    #[error("{thread} failed: {message}")]
    Internal {
        /// Name of the thread.
        thread: String,
        /// What it said.
        message: String,
    },
    /// [`Request::Kill`], or the runtime's end of the control socket closed.
    #[error("the machine was killed by its supervisor")]
    Killed,
    /// The machine could not be built.
    #[error("cannot start the machine: {stage}: {message}")]
    Setup {
        /// Stage of the boot recipe.
        stage: String,
        /// What failed.
        message: String,
    },
}

/// x86 I/O port of the power button: the agent writes one byte, any, and the
/// machine is off. No ACPI, no i8042.
pub const POWER_PORT: u16 = 0x600;

/// The end of a guest's console, told after what happened to it.
fn last_words(console: &str) -> String {
    match console.trim() {
        "" => " without a word".into(),
        words => format!("; the guest's last words:\n{words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let command = Command { id: 7, request: Request::Balloon { mib: 64 } };
        let json = serde_json::to_string(&command).unwrap();
        assert_eq!(json, r#"{"id":7,"request":{"balloon":{"mib":64}}}"#);
        assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), command);
    }

    #[test]
    fn growth_is_by_whole_blocks_and_never_backwards() {
        assert_eq!(grown_mib(129, 129), 129);
        assert_eq!(grown_mib(129, 64), 129);
        assert_eq!(grown_mib(129, 130), 129 + 128);
        assert_eq!(grown_mib(129, 129 + 256), 129 + 256);
        assert_eq!(grown_mib(63 << 10, (63 << 10) + 1), 65 << 10);
        // Asked for again, it is the same.
        let grown = grown_mib(512, 1000);
        assert_eq!((grown, grown_mib(grown, 1000)), (1024, 1024));
        assert!(grown_mib(u32::MAX - 1, u32::MAX) >= u32::MAX - 1);
    }

    #[test]
    fn growth_round_trips() {
        let command = Command { id: 1, request: Request::Grow { memory_mib: 640, vcpus: 3 } };
        let json = serde_json::to_string(&command).unwrap();
        assert_eq!(json, r#"{"id":1,"request":{"grow":{"memory_mib":640,"vcpus":3}}}"#);
        assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), command);
        let added = Some(AddedMemory { start: 1 << 32, bytes: 1 << 27 });
        let reply = Reply::Grown { size: Size { memory_mib: 640, vcpus: 3 }, added };
        let json = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&json).unwrap(), reply);
    }

    #[test]
    fn interfaces_round_trip() {
        let json = r#"{"mac":[2,0,0,0,0,1],"mtu":1500,"taps":[3],"limits":{"from_guest":
            {"bytes":{"per_second":1000,"burst":10}}},
            "guard":{"addresses":[{"address":"10.0.0.2","length":32},
            {"address":"fd00::","length":8}]}}"#;
        let net: Net = serde_json::from_str(json).unwrap();
        let limits = net.limits.unwrap();
        assert_eq!((limits.to_guest, limits.from_guest.packets), (Limit::default(), None));
        assert_eq!(limits.from_guest.bytes, Some(Rate { per_second: 1000, burst: 10 }));
        let request = Request::AttachNet { slot: None, net };
        let command = Command { id: 2, request };
        let json = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&json).unwrap(), command);
        let asked = serde_json::to_string(&Request::NetCounters).unwrap();
        assert_eq!(asked, r#""net_counters""#);
        let counters = NetCounters { device: 4, mac: [2; 6], pairs: vec![PairCounters::default()] };
        let reply = Reply::NetCounters(vec![counters]);
        let json = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&json).unwrap(), reply);
    }

    #[test]
    fn a_newer_peer_may_add_fields() {
        let json = r#"{"event":{"guest_connect":{"port":5,"later":true}}}"#;
        let message: FromVmm = serde_json::from_str(json).unwrap();
        assert_eq!(message, FromVmm::Event(Event::GuestConnect { port: 5 }));
    }
}
