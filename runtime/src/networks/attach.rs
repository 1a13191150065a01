//! A container's way into its network, and out of it.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Map, json};

use super::definition::check_ipv6;
use super::egress::{Allowed, Egress, Pinned};
use super::files::{self, Identity};
use super::options::{Networking, Protocol, Published};
use super::passt::{self, Passt};
use super::record::{self, Record};
use super::rules::{self, Guest, Policy, Refused};
use super::{Known, NetworkError, Networks, hosts, link};
use crate::cni::{Client, CniResult, NetworkList, PluginPath};
use crate::dirs::Dirs;
use crate::files::{FileError, write_json};
use crate::rootless::is_rootless;

/// What was refused to a container that has ended.
pub(super) const REFUSED: &str = "refused.json";
/// Name of a container's interface.
pub(super) const INTERFACE: &str = "eth0";
/// Interfaces of a container whose ends on the host have rules.
pub(super) const MAX_ENDS: usize = 4;

/// A container that is to have a network.
#[derive(Debug)]
pub struct Joining<'a> {
    /// Where all containers lie.
    pub dirs: &'a Dirs,
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Whether it is gone when it ends.
    pub auto_remove: bool,
    /// What was asked for.
    pub options: &'a Networking,
    /// Finds out whether a container that may have been killed lives, and takes it out of
    /// its network if it does not.
    pub reconcile: fn(&Dirs, &str),
}

/// The namespace of a container that is in its network.
#[derive(Debug)]
pub struct Attached {
    namespace: OwnedFd,
    host: OwnedFd,
    pub(super) passt: Option<Passt>,
}

impl Attached {
    /// Puts this thread into the container's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), NetworkError> {
        enter(&self.namespace)
    }

    /// Puts this thread back into the host's namespace, if anything is to be undone there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self) -> Result<(), NetworkError> {
        match self.passt {
            // Who is not root would not be let in again.
            Some(_) => Ok(()),
            None => enter(&self.host),
        }
    }

    /// Does something in the container's namespace, on a thread of its own.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, NetworkError> {
        let work = || enter(&self.namespace).map(|()| work());
        let panicked = |_| std::io::Error::other("its thread panicked");
        let done = std::thread::scope(|scope| scope.spawn(work).join().map_err(panicked));
        done.map_err(NetworkError::system("work in a network namespace"))?
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

fn enter(namespace: &OwnedFd) -> Result<(), NetworkError> {
    let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
    entered.map_err(|errno| NetworkError::system("enter a network namespace")(errno.into()))
}

/// Puts a new network namespace into the container's network. The caller's thread is in
/// the host's.
///
/// # Errors
/// With the reason; nothing is left.
pub fn attach(joining: &Joining) -> Result<Attached, NetworkError> {
    let Joining { dirs, id, options, .. } = *joining;
    // What is left of an earlier life.
    detach(dirs, id, None, None)?;
    forget_counts(&dirs.container_lib(id))?;
    super::check_root(&options.network)?;
    if options.network == passt::NAME {
        return passt::attach(joining);
    }
    let networks = Networks::new(dirs.clone());
    // Makes the default one.
    networks.find(&options.network)?;
    for (owner, _) in owners(dirs, &options.ports)? {
        (joining.reconcile)(dirs, &owner);
    }
    // Not under a lock: names may take long.
    let egress = options.egress.as_ref().map(Egress::resolve).transpose()?;
    let attached = new_namespace()?;
    let result = join(joining, &networks, egress.unwrap_or_default(), &attached);
    if let Err(error) = result {
        if let Err(also) = detach(dirs, id, Some(&attached), None) {
            tracing::warn!("{}", crate::container::chain(&also));
        }
        return Err(error);
    }
    Ok(attached)
}

/// Those of an earlier life are not this one's.
fn forget_counts(lib: &Path) -> Result<(), NetworkError> {
    let path = lib.join(REFUSED);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(FileError::access(path)(error).into())
        }
        _ => Ok(()),
    }
}

fn join(
    joining: &Joining,
    networks: &Networks,
    (allowed, pinned): (Vec<Allowed>, Vec<Pinned>),
    attached: &Attached,
) -> Result<(), NetworkError> {
    let Joining { dirs, id, options, .. } = *joining;
    let lib = dirs.container_lib(id);
    let log = record::log(&lib)?;
    // Until the record is there, neither the network nor the ports can become another's.
    let lock = networks.lock()?;
    let known = networks.existing(&options.network)?;
    check_ports(dirs, &options.ports)?;
    let mut record = first_record(joining, &known)?;
    client(&record, id, &log).find_all()?;
    record::write(&lib, &record)?;
    // Two that make a bridge at once hinder each other.
    let first = known.bridge().is_some_and(|bridge| !link::exists(bridge));
    let lock = first.then_some(lock);
    let mut noted = record.clone();
    let added = client(&record, id, &log).add(&attached.path(), |so_far| {
        noted.result = Some(so_far.clone());
        record::write(&lib, &noted)
    })?;
    drop(lock);
    let result: CniResult = serde_json::from_value(added.clone()).map_err(NetworkError::Result)?;
    let policy = options.egress.as_ref().map(|egress| Policy { public: egress.public, allowed });
    record.result = Some(added);
    record.sources = sources(&result, attached)?;
    record.rules = true;
    record::write(&lib, &record)?;
    rules::set(&guest(joining, &known, &record, &result, policy)?, &log)?;
    drop(log);
    let addresses = record.addresses();
    let (hostname, name) = (joining.hostname, joining.name);
    let gateway = result.gateways().next();
    let identity = Identity { hostname, name, addresses: &addresses, gateway, pinned: &pinned };
    files::write(&lib, options, &identity)?;
    hosts::refresh(dirs, &known.list.name)
}

/// What is known before the first plugin runs.
fn first_record(joining: &Joining, known: &Known) -> Result<Record, NetworkError> {
    let options = joining.options;
    let subnets = known.subnets();
    if known.ours && subnets.iter().any(|subnet| !subnet.is_ipv4()) {
        check_ipv6()?;
    }
    let mut settings = Map::new();
    if !options.ports.is_empty() {
        let ports: Vec<_> = options.ports.iter().map(Published::mapping).collect();
        settings.insert("portMappings".into(), json!(ports));
    }
    let own = [joining.name, joining.hostname, crate::id::short(joining.id)];
    let mut names: Vec<String> = Vec::new();
    for name in own.into_iter().chain(options.aliases.iter().map(|alias| alias.0.as_str())) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(Record {
        list: known.list.clone(),
        subnets,
        interface: INTERFACE.into(),
        settings,
        ports: options.ports.clone(),
        names,
        boot: record::this_boot()?,
        plugins: PluginPath::from_env(),
        rules: false,
        sources: Vec::new(),
        keep_counts: !joining.auto_remove,
        result: None,
    })
}

fn guest<'a>(
    joining: &Joining<'a>,
    known: &Known,
    record: &'a Record,
    result: &CniResult,
    policy: Option<Policy>,
) -> Result<Guest<'a>, NetworkError> {
    let on_host = || result.on_host().map(|interface| interface.name.clone());
    let ends: Vec<_> = on_host().filter(|name| !link::is_bridge(name)).take(MAX_ENDS).collect();
    if policy.is_some() && ends.is_empty() {
        return Err(NetworkError::OutOfReach(known.list.name.clone()));
    }
    Ok(Guest {
        id: joining.id,
        addresses: record.sources.clone(),
        subnets: &record.subnets,
        ours: known.ours,
        internal: known.internal(),
        allow_host: joining.options.allow_host,
        policy,
        name_servers: files::name_servers(joining.options),
        ends,
        // Without a bridge, the end's own is where the host is.
        macs: on_host().filter_map(|name| link::mac(&name)).collect(),
    })
}

/// All addresses that the guest may send from. The link-local one is as the kernel makes it,
/// of the hardware address that it has, whatever plugins say.
fn sources(result: &CniResult, attached: &Attached) -> Result<Vec<IpAddr>, NetworkError> {
    let failed = NetworkError::system("look at the container's interface");
    let look = || -> nix::Result<Option<[u8; 6]>> {
        let mut own = getifaddrs()?.filter(|one| one.interface_name == INTERFACE);
        Ok(own.find_map(|one| one.address?.as_link_addr()?.addr()))
    };
    let mac = attached.inside(look)?.map_err(|errno| failed(errno.into()))?;
    let mut all: Vec<IpAddr> = result.addresses().map(|(address, _)| address).collect();
    all.extend(mac.map(rules::link_local));
    Ok(all)
}

fn client<'a>(record: &'a Record, id: &'a str, log: &'a File) -> Client<'a> {
    let Record { list, interface, settings, plugins, .. } = record;
    Client { list, path: plugins, container: id, interface, settings, log }
}

/// Takes the container `id` out of its network, as far as it is in one. Its namespace may
/// be gone. The caller's thread is in the host's. `counted` is what its VMM refused, if that
/// is known.
///
/// # Errors
/// With the reason; what is left is known to the next call.
pub fn detach(
    dirs: &Dirs,
    id: &str,
    attached: Option<&Attached>,
    counted: Option<Refused>,
) -> Result<(), NetworkError> {
    let lib = dirs.container_lib(id);
    passt::forget(&lib, counted.clone())?;
    if record::read(&lib)?.is_none() {
        return Ok(());
    }
    let log = record::log(&lib)?;
    // Somebody else may have done it while we waited.
    let Some(mut record) = record::read(&lib)? else { return Ok(()) };
    if record.rules && record.is_of(&record::this_boot()?) {
        if record.keep_counts {
            let path = lib.join(REFUSED);
            let refused = rules::refused(id, MAX_ENDS).unwrap_or_default();
            let refused = refused.and(counted.unwrap_or_default());
            write_json(&path, &refused)?;
        }
        // Before its addresses are another's.
        rules::remove(id, &record.sources, MAX_ENDS, &log)?;
        record.rules = false;
        record::write(&lib, &record)?;
    }
    if client(&record, id, &log).find_all().is_err() {
        // They were moved since.
        record.plugins = PluginPath::from_env();
    }
    let namespace = attached.map(Attached::path);
    client(&record, id, &log).del(namespace.as_deref(), record.result.as_ref())?;
    record::forget(&lib)?;
    drop(log);
    let NetworkList { name, .. } = &record.list;
    hosts::refresh(dirs, name)
}

/// A namespace of this process.
pub(super) fn new_namespace() -> Result<Attached, NetworkError> {
    let failed = || NetworkError::system("make a network namespace");
    let open = || File::open("/proc/thread-self/ns/net").map(OwnedFd::from);
    let host = open().map_err(failed())?;
    let make = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        open()
    });
    let panicked = |_| std::io::Error::other("its thread panicked");
    let namespace = make.join().map_err(panicked).and_then(|made| made).map_err(failed())?;
    Ok(Attached { namespace, host, passt: None })
}

/// Containers that have one of these ports of the host.
fn owners(dirs: &Dirs, ports: &[Published]) -> Result<Vec<(String, Record)>, NetworkError> {
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let has_one = |record: &Record| {
        record.ports.iter().any(|other| ports.iter().any(|port| other.collides(port)))
    };
    let all = hosts::attached(dirs)?.into_iter();
    Ok(all.filter(|(_, record)| has_one(record)).collect())
}

/// Refuses ports that somebody has already. CNI's portmap does not look.
pub(super) fn check_ports(dirs: &Dirs, ports: &[Published]) -> Result<(), NetworkError> {
    let refuse =
        |port: &Published, why: String| Err(NetworkError::Port { port: port.to_string(), why });
    let others = owners(dirs, ports)?;
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|other| other.collides(port)) {
            return refuse(port, "it is asked for twice".into());
        }
        let has_it = |record: &Record| record.ports.iter().any(|other| other.collides(port));
        if let Some((_, other)) = others.iter().find(|(_, record)| has_it(record)) {
            let name = other.names.first().map_or("another", String::as_str);
            return refuse(port, format!("the container {name} has that port of the host"));
        }
        let address = port.address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let bound = match port.protocol {
            Protocol::Tcp => TcpListener::bind((address, port.host)).map(drop),
            Protocol::Udp => UdpSocket::bind((address, port.host)).map(drop),
        };
        match bound {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && is_rootless() => {
                let why = "it is one of root's (sysctl net.ipv4.ip_unprivileged_port_start says \
                           where others begin)";
                return refuse(port, why.into());
            }
            Err(error) => return refuse(port, error.to_string()),
            Ok(()) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_somebody_has_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { run: dir.path().join("run"), lib: dir.path().join("lib") };
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let check = |ports: &[String]| {
            let ports: Vec<_> = ports.iter().map(|port| Published::test(port)).collect();
            check_ports(&dirs, &ports).map_err(|error| error.to_string())
        };
        let error = check(&[format!("127.0.0.1:{port}:80")]).unwrap_err();
        assert!(error.contains("in use"), "{error}");
        drop(taken);
        check(&[format!("127.0.0.1:{port}:80")]).unwrap();
        let twice = [format!("{port}:80"), format!("127.0.0.1:{port}:81")];
        assert!(check(&twice).unwrap_err().contains("twice"));
    }

    #[test]
    fn one_that_is_in_no_network_has_nothing_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { run: dir.path().join("run"), lib: dir.path().join("lib") };
        detach(&dirs, &"a".repeat(64), None, None).unwrap();
    }
}
