//! A container's way into its network, and out of it.

use std::fs::File;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Map, json};

use super::files::{self, Identity};
use super::options::{Networking, Protocol, Published};
use super::record::{self, Record};
use super::rules::{self, Guest, Policy};
use super::{Known, NetworkError, Networks, hosts, link};
use crate::cni::{Client, CniResult, NetworkList, PluginPath};
use crate::dirs::Dirs;
use crate::files::write_json;

/// Name of a container's interface.
const INTERFACE: &str = "eth0";
/// Interfaces of a container whose ends on the host have rules.
const MAX_ENDS: usize = 4;

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
}

/// The namespace of a container that is in its network.
#[derive(Debug)]
pub struct Attached {
    namespace: OwnedFd,
    host: OwnedFd,
}

impl Attached {
    /// Puts this thread into the container's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), NetworkError> {
        enter(&self.namespace)
    }

    /// Puts this thread back into the host's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self) -> Result<(), NetworkError> {
        enter(&self.host)
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
    let networks = Networks::new(dirs.clone());
    let known = networks.find(&options.network)?;
    // What is left of an earlier life.
    detach(dirs, id, None)?;
    check_ports(dirs, &options.ports)?;
    let attached = new_namespace()?;
    let result = join(joining, &networks, &known, &attached);
    if let Err(error) = result {
        if let Err(also) = detach(dirs, id, Some(&attached)) {
            tracing::warn!("{}", crate::container::chain(&also));
        }
        return Err(error);
    }
    Ok(attached)
}

fn join(
    joining: &Joining,
    networks: &Networks,
    known: &Known,
    attached: &Attached,
) -> Result<(), NetworkError> {
    let Joining { dirs, id, options, .. } = *joining;
    let lib = dirs.container_lib(id);
    let (allowed, pinned) = match &options.egress {
        Some(egress) => egress.resolve()?,
        None => Default::default(),
    };
    let mut settings = Map::new();
    if !options.ports.is_empty() {
        let ports: Vec<_> = options.ports.iter().map(Published::mapping).collect();
        settings.insert("portMappings".into(), json!(ports));
    }
    let mut names = vec![joining.name.to_owned(), joining.hostname.to_owned()];
    names.push(crate::id::short(id).to_owned());
    names.dedup();
    let mut record = Record {
        list: known.list.clone(),
        subnets: known.subnets(),
        interface: INTERFACE.into(),
        settings,
        ports: options.ports.clone(),
        names,
        rules: false,
        keep_counts: !joining.auto_remove,
        result: None,
    };
    let log = record::log(&lib)?;
    let path = PluginPath::from_env();
    client(&record, id, &path, &log).find_all()?;
    record::write(&lib, &record)?;
    // Two that make a bridge at once hinder each other.
    let first = known.bridge().is_some_and(|bridge| !link::exists(bridge));
    let lock = first.then(|| networks.lock()).transpose()?;
    let added = client(&record, id, &path, &log).add(&attached.path())?;
    drop((lock, log));
    record.result = Some(added);
    record.rules = true;
    record::write(&lib, &record)?;
    let result = record.outcome().unwrap_or_default();
    let policy = options.egress.as_ref().map(|egress| Policy {
        public: egress.public,
        allowed,
        name_servers: files::name_servers(options),
    });
    let guest = guest(joining, known, &record.subnets, &result, policy)?;
    rules::set(&guest)?;
    let addresses = record.addresses();
    let (hostname, name) = (joining.hostname, joining.name);
    let gateway = result.gateways().next();
    let identity = Identity { hostname, name, addresses: &addresses, gateway, pinned: &pinned };
    files::write(&lib, options, &identity)?;
    hosts::refresh(dirs, &known.list.name)
}

fn guest<'a>(
    joining: &Joining<'a>,
    known: &Known,
    subnets: &'a [crate::networks::cidr::Cidr],
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
        addresses: sources(result),
        subnets,
        internal: known.internal(),
        allow_host: joining.options.allow_host,
        policy,
        ends,
        bridges: on_host()
            .filter(|name| link::is_bridge(name))
            .filter_map(|name| link::mac(&name))
            .collect(),
    })
}

/// All addresses that the guest may send from.
fn sources(result: &CniResult) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = result.addresses().map(|(address, _)| address).collect();
    all.extend(result.inside().and_then(|interface| rules::link_local(&interface.mac)));
    all
}

fn client<'a>(record: &'a Record, id: &'a str, path: &'a PluginPath, log: &'a File) -> Client<'a> {
    let Record { list, interface, settings, .. } = record;
    Client { list, path, container: id, interface, settings, log }
}

/// Takes the container `id` out of its network, as far as it is in one. Its namespace may
/// be gone. The caller's thread is in the host's.
///
/// # Errors
/// With the reason; what is left is known to the next call.
pub fn detach(dirs: &Dirs, id: &str, attached: Option<&Attached>) -> Result<(), NetworkError> {
    let lib = dirs.container_lib(id);
    let Some(mut record) = record::read(&lib)? else { return Ok(()) };
    let log = record::log(&lib)?;
    let result = record.outcome().unwrap_or_default();
    if record.rules {
        if record.keep_counts {
            let path = lib.join("refused.json");
            write_json(&path, &rules::refused(id))?;
        }
        // Before its addresses are another's.
        rules::remove(id, &sources(&result), MAX_ENDS)?;
        record.rules = false;
        record::write(&lib, &record)?;
    }
    let (path, namespace) = (PluginPath::from_env(), attached.map(Attached::path));
    client(&record, id, &path, &log).del(namespace.as_deref(), record.result.as_ref())?;
    record::forget(&lib)?;
    drop(log);
    let NetworkList { name, .. } = &record.list;
    hosts::refresh(dirs, name)
}

/// A namespace of this process.
fn new_namespace() -> Result<Attached, NetworkError> {
    let failed = || NetworkError::system("make a network namespace");
    let open = || File::open("/proc/thread-self/ns/net").map(OwnedFd::from);
    let host = open().map_err(failed())?;
    let make = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        open()
    });
    let panicked = |_| std::io::Error::other("its thread panicked");
    let namespace = make.join().map_err(panicked).and_then(|made| made).map_err(failed())?;
    Ok(Attached { namespace, host })
}

/// Refuses ports that somebody has already. CNI's portmap does not look.
fn check_ports(dirs: &Dirs, ports: &[Published]) -> Result<(), NetworkError> {
    let refuse =
        |port: &Published, why: String| Err(NetworkError::Port { port: port.to_string(), why });
    let others = if ports.is_empty() { Vec::new() } else { hosts::attached(dirs) };
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
        if let Err(error) = bound {
            return refuse(port, error.to_string());
        }
    }
    Ok(())
}

/// What was refused to a container, now or until it ended.
pub fn refused(dirs: &Dirs, id: &str) -> Result<rules::Refused, NetworkError> {
    let lib = dirs.container_lib(id);
    if record::read(&lib)?.is_some_and(|record| record.rules) {
        return Ok(rules::refused(id));
    }
    Ok(crate::files::read_json(&lib.join("refused.json"))?.unwrap_or_default())
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
            let ports: Vec<Published> = ports.iter().map(|port| port.parse().unwrap()).collect();
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
        detach(&dirs, &"a".repeat(64), None).unwrap();
        assert_eq!(refused(&dirs, &"a".repeat(64)).unwrap(), rules::Refused::default());
    }
}
