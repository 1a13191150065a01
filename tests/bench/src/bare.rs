//! A machine without a container, from the runtime's library: how two kernels are
//! compared on the same VMM, of which one may not get beyond the first line.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use runtime::limits::{Bytes, Limits, Shape};
use runtime::network::{Network, Policy};
use runtime::sandbox::assets::Assets;
use runtime::sandbox::ids::Both;
use runtime::sandbox::{CgroupConfig, LaunchTimings, Privileges, Sandbox, SandboxConfig};

/// Options of `boot`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Guest memory in MiB
    #[arg(long)]
    memory: u32,
    /// vCPUs to which the machine could grow, of which it has one
    #[arg(long, default_value_t = 1)]
    room: u8,
    /// With the network of this process's namespace: `unshare -n` shows what room for
    /// interfaces costs that never come
    #[arg(long)]
    network: bool,
    /// Words for the kernel's command line
    cmdline: Vec<String>,
}

/// Boots what BULKHEAD_KERNEL names to the agent's first line; milliseconds from
/// the start of the VMM's process.
pub fn boot(options: &Options) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let memory = Bytes(u64::from(options.memory) << 20);
    let limits = Limits { memory: Some(memory), ..Limits::default() };
    // This much for the guest: a container's limit has the kernel's own on top.
    let shape = Shape { memory_mib: options.memory, ..limits.shape()? };
    let id = runtime::id::new_id().context("/dev/urandom")?;
    let config = SandboxConfig {
        privileges: Privileges::Root {
            uids: directory.path().join("uids"),
            cgroup: CgroupConfig::of(&id, &shape),
        },
        id,
        directory: directory.path().join("sandbox"),
        shape,
        ids: Both::default(),
        max_vcpus: options.room,
        shares: Vec::new(),
        cmdline: options.cmdline.clone(),
        apparmor: false,
        boot_timeout: Duration::from_secs(60),
    };
    let mut timings = LaunchTimings::default();
    let assets = Assets::find()?.open()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let network = match options.network {
        true => Some(Network::open(1, Policy::default())?),
        false => None,
    };
    let error = runtime.block_on(async {
        match Sandbox::launch_timed(&config, &assets, network, &mut timings).await {
            Ok(sandbox) => {
                sandbox.shutdown(Duration::from_secs(10)).await;
                None
            }
            // A kernel without a virtio-mmio driver has no more to say than that line.
            Err(error) => Some(error),
        }
    });
    match (timings.first_line_us, error) {
        (Some(at), _) => Ok((at - timings.spawned_us) as f64 / 1000.0),
        (None, Some(error)) => Err(error).context("the guest ended without its first line"),
        (None, None) => anyhow::bail!("the guest answered without its first line"),
    }
}

/// [`boot`] of `kernel` in a process of its own.
pub fn first_line(kernel: &Path, initrd: &Path, memory: u32) -> Result<f64> {
    let myself = std::env::current_exe()?;
    let vmm = find("bulkhead-vmm").context("bulkhead-vmm is not on the PATH")?;
    let output = Command::new(myself)
        .args(["boot", "--memory", &memory.to_string()])
        .env("BULKHEAD_KERNEL", kernel)
        .env("BULKHEAD_INITRD", initrd)
        .env("BULKHEAD_VMM", vmm)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("{} did not boot", kernel.display()))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|p| p.is_file())
}
