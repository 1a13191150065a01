//! The steps of a machine's start.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use protocol::machine::{FdIndex, MAX_NETS, MAX_QUEUE_PAIRS, MachineConfig, Share};
use protocol::vsock::RESOLVER_PORT;
use tokio::sync::mpsc;

use super::assets::OpenAssets;
use super::ids::High;
use super::owner::Owner;
use super::resources::Resources;
use super::vmm::{Pending, VmmEvent, VmmHandle};
use super::{LaunchError, LaunchTimings, SandboxConfig, share};
use crate::agent::{Agent, Greeting};
use crate::limits::Shape;
use crate::network::{Keeper, LATER, Machine, Plug, Resolver, Watch};
use crate::rootless::{self, is_rootless};

/// Serves the guest's connections to the host.
pub(super) async fn answer_guest(mut events: mpsc::Receiver<VmmEvent>, resolver: Option<Resolver>) {
    while let Some(event) = events.recv().await {
        match (event, &resolver) {
            (VmmEvent::GuestConnect { port: RESOLVER_PORT, stream }, Some(resolver)) => {
                resolver.serve(stream);
            }
            // There is nobody at other ports: the guest sees a closed stream.
            (VmmEvent::GuestConnect { .. } | VmmEvent::Running(_), _) => {}
        }
    }
}

/// Tells the guest of its network, and watches that.
pub(super) async fn introduce(
    mut keeper: Keeper,
    machine: Machine,
    news: OwnedFd,
) -> Result<Watch, LaunchError> {
    keeper.settle(&machine).await?;
    let failed = |source| LaunchError::Namespace { what: "watch the network", source };
    Watch::begin(keeper, machine, news).map_err(failed)
}

/// Maps the ids of the held process and makes its mounts.
pub(super) fn prepare(
    process: &crate::sys::process::Held,
    resources: &Resources,
    config: &SandboxConfig,
) -> Result<(Vec<(Share, OwnedFd)>, OwnedFd), LaunchError> {
    let failed = |what| move |source| LaunchError::Namespace { what, source };
    let (id, shares) = (&config.id, &config.shares);
    if let Some(cgroup) = resources.cgroup() {
        // Whatever it spends from its first instruction on is charged there.
        cgroup.take(process.pid())?;
    }
    let base = resources.uid_base();
    let map = |high: &High, file| {
        let map = high.map(base);
        if is_rootless() { map.split(&rootless::ranges(file)).lines() } else { map.lines() }
    };
    let (uid_map, gid_map) = (map(&config.ids.uids, "uid_map")?, map(&config.ids.gids, "gid_map")?);
    process.map_ids(&uid_map, &gid_map).map_err(failed("map the ids"))?;
    if !is_rootless() {
        // Else the user's hard limit is what there is.
        process.raise_descriptors().map_err(failed("raise the limit of descriptors"))?;
    }
    let userns = process.user_namespace().map_err(failed("open the user namespace"))?;
    // Besides the shares: kvm, kernel, initrd, console, vsock listener, and taps.
    let limit = protocol::machine::MAX_FDS - 5 - MAX_NETS * usize::from(MAX_QUEUE_PAIRS);
    if shares.len() > limit {
        return Err(LaunchError::TooManyShares { count: shares.len(), limit });
    }
    let copy = userns.try_clone().map_err(failed("open the user namespace"))?;
    let owner = Owner::new(copy, base, &config.ids);
    let detach = |share| Ok(share::detach(share, id, &owner)?);
    let shares = shares.iter().map(detach).collect::<Result<_, LaunchError>>()?;
    Ok((shares, userns))
}

/// The machine's description and the descriptors that it names.
pub(super) fn describe(
    config: &SandboxConfig,
    assets: &OpenAssets,
    resources: &Resources,
    console: OwnedFd,
    shares: Vec<(Share, OwnedFd)>,
    (plugs, resolver): (Option<Vec<Plug>>, bool),
) -> (MachineConfig, Vec<OwnedFd>) {
    let mut fds: Vec<OwnedFd> = Vec::new();
    let mut add = |fd: OwnedFd| {
        fds.push(fd);
        FdIndex(fds.len() as u32 - 1)
    };
    // A descriptor that cannot be duplicated is one too many for this process;
    // the message then names too few and the VMM refuses it.
    let copy = |fd: BorrowedFd| fd.try_clone_to_owned().ok();
    let mut machine = MachineConfig {
        version: protocol::PROTOCOL_VERSION,
        id: crate::id::short(&config.id).to_owned(),
        memory_mib: config.shape.memory_mib,
        vcpus: config.shape.vcpus,
        max_vcpus: config.max_vcpus,
        kvm: FdIndex(u32::MAX),
        kernel: FdIndex(u32::MAX),
        initrd: FdIndex(u32::MAX),
        cmdline: config.cmdline.clone(),
        console: Some(add(console)),
        vsock_listener: copy(resources.listener()).map(&mut add),
        shares: Vec::new(),
        disks: Vec::new(),
        nets: Vec::new(),
        net_slots: 0,
        balloon: true,
        apparmor: config.apparmor,
        resolver,
    };
    for (slot, fd) in [
        (&mut machine.kvm, assets.kvm.as_fd()),
        (&mut machine.kernel, assets.kernel.as_fd()),
        (&mut machine.initrd, assets.initrd.as_fd()),
    ] {
        if let Some(fd) = copy(fd) {
            *slot = add(fd);
        }
    }
    for (mut share, mount) in shares {
        share.mount = add(mount);
        machine.shares.push(share);
    }
    if let Some(plugs) = plugs {
        machine.net_slots = LATER.min(MAX_NETS - plugs.len()) as u8;
        machine.nets = plugs.into_iter().map(|plug| plug.with(&mut add)).collect();
    }
    (machine, fds)
}

/// Waits for the agent's hello on the connection that the guest makes.
pub(super) async fn first_contact(
    boot: Pending,
    events: &mut mpsc::Receiver<VmmEvent>,
    timings: &mut LaunchTimings,
    begin: Instant,
) -> Result<(Agent, Greeting), LaunchError> {
    let mut boot = std::pin::pin!(boot);
    let mut booted = false;
    loop {
        let event = tokio::select! {
            reply = &mut boot, if !booted => {
                reply?;
                booted = true;
                continue;
            }
            event = events.recv() => event,
        };
        match event {
            Some(VmmEvent::Running(stages)) => {
                timings.running_us = begin.elapsed().as_micros() as u64;
                timings.vmm = stages;
            }
            Some(VmmEvent::GuestConnect { port, stream }) => {
                if port == protocol::vsock::READY_PORT {
                    // The caller's deadline bounds this wait.
                    let never = Duration::from_secs(86_400);
                    return Ok(Agent::greet(stream, never).await?);
                }
            }
            // The VMM ended; the caller waits for the reason.
            None => std::future::pending().await,
        }
    }
}

/// What `step` of the boot comes to, unless the VMM ends or the time is over before.
pub(super) async fn in_time<T>(
    step: impl Future<Output = Result<T, LaunchError>>,
    vmm: &VmmHandle,
    begin: Instant,
    limit: Duration,
) -> Result<T, LaunchError> {
    tokio::select! {
        biased;
        result = step => result,
        end = vmm.ended() => Err(LaunchError::Vmm(end)),
        () = tokio::time::sleep_until((begin + limit).into()) => Err(LaunchError::NoAnswer {
            seconds: limit.as_secs(),
            console: vmm.console_tail(),
        }),
    }
}

/// The VMM's own reason, where it has one, instead of a broken connection.
pub(super) async fn explain(error: LaunchError, vmm: &VmmHandle) -> LaunchError {
    if !matches!(error, LaunchError::Control(_) | LaunchError::Agent(_)) {
        return error;
    }
    match tokio::time::timeout(Duration::from_secs(2), vmm.ended()).await {
        Ok(end) => LaunchError::Vmm(end),
        Err(_) => error,
    }
}

/// Refuses a machine that the host has no memory for.
pub(super) fn check_memory(shape: Shape) -> Result<(), LaunchError> {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_mib(&text))
        .unwrap_or(u64::MAX);
    let needed = u64::from(shape.memory_mib);
    if available < needed {
        return Err(LaunchError::Memory { needed, available });
    }
    Ok(())
}

/// MemAvailable of /proc/meminfo in MiB.
pub fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        assert_eq!(available_mib("nothing"), None);
    }
}
