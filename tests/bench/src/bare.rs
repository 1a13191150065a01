//! A VMM started by hand, without the runtime: any kernel, no shares. It is how
//! two kernels are compared on the same VMM.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use protocol::PROTOCOL_VERSION;
use protocol::agent::FIRST_LINE;
use protocol::machine::{Command as Order, FdIndex, MachineConfig, Request};

/// The namespaces and id maps in which the VMM expects to find itself.
const UNSHARE: &str = "exec 3<&0 0</dev/null unshare --user --map-users=0,1879048192,65536 \
                       --map-groups=0,1879048192,65536 --setuid 0 --setgid 0 --mount --pid --fork \
                       --kill-child --net --ipc --uts bulkhead-vmm";

/// Options of `boot`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The kernel, an uncompressed ELF
    pub kernel: PathBuf,
    /// The initial file system
    pub initrd: PathBuf,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 128)]
    pub memory: u32,
    /// Words for the kernel's command line, as `loglevel=8 initcall_debug`
    pub cmdline: Vec<String>,
}

/// What became of a boot.
pub struct Booted {
    /// Milliseconds from the start of the VMM to the agent's first line.
    pub first_line: f64,
    /// The console up to that line.
    pub console: String,
}

/// Boots to the agent's first line.
pub fn boot(options: &Options) -> Result<Booted> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let (console, write) = std::io::pipe()?;
    let open = |path: &Path| File::open(path).with_context(|| format!("{}", path.display()));
    let kvm = File::options().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let files: [OwnedFd; 4] =
        [kvm.into(), open(&options.kernel)?.into(), open(&options.initrd)?.into(), write.into()];
    let machine = MachineConfig {
        version: PROTOCOL_VERSION,
        id: "bench".into(),
        memory_mib: options.memory,
        vcpus: 1,
        kvm: FdIndex(0),
        kernel: FdIndex(1),
        initrd: FdIndex(2),
        cmdline: options.cmdline.clone(),
        console: Some(FdIndex(3)),
        vsock_listener: None,
        shares: Vec::new(),
        disks: Vec::new(),
        balloon: false,
    };
    let order = serde_json::to_vec(&Order { id: 1, request: Request::Boot(Box::new(machine)) })?;
    let start = Instant::now();
    let mut child = Command::new("bash")
        .args(["-c", UNSHARE])
        .stdin(Stdio::from(theirs))
        .spawn()
        .context("cannot start bash")?;
    let fds = files.each_ref().map(AsRawFd::as_raw_fd);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(&order)], &rights, MsgFlags::empty(), None)
        .context("the VMM does not listen")?;
    drop(files);
    let mut taken = None;
    let mut said = String::new();
    for line in BufReader::new(console).lines().map_while(Result::ok) {
        said += &line;
        said.push('\n');
        if line.ends_with(FIRST_LINE) {
            taken = Some(start.elapsed().as_secs_f64() * 1000.0);
            break;
        }
    }
    // The end of the control socket is the end of the VMM.
    drop(ours);
    child.wait()?;
    let taken = taken.with_context(|| format!("the guest ended without its first line: {said}"))?;
    Ok(Booted { first_line: taken, console: said })
}
