//! Networks as they lie in files: ours, and the host's.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::cidr::Cidr;
use super::{NetworkError, link, passt, rules};
use crate::cni::{NetworkList, PluginPath, is_name};
use crate::dirs::{self, Dirs};
use crate::files::{self, FileError, write_json};

/// The network that is there without being made.
pub const DEFAULT: &str = "bridge";
/// Where the host's administrator describes networks.
const HOST_LISTS: &str = "/etc/cni/net.d";
/// Where subnets are taken from, unless one is named: each a /24 of it.
const POOL: [u8; 2] = [10, 87];
/// What names of our bridges begin with.
pub(super) const BRIDGES: &str = "bkh";
/// Key of a list that holds what is ours.
const OURS: &str = "bulkhead";

/// The networks of this host.
#[derive(Debug, Clone)]
pub struct Networks {
    dirs: Dirs,
}

/// A network that is to be made.
#[derive(Debug, Clone, Default)]
pub struct Created {
    /// Subnets, at most one for each version of IP; a free one of IPv4 if there is none.
    pub subnets: Vec<Cidr>,
    /// Addresses of the host in them; the first of each, if absent.
    pub gateways: Vec<IpAddr>,
    /// Also a subnet of IPv6, if none is named.
    pub ipv6: bool,
    /// Without a way out.
    pub internal: bool,
    /// Largest packet.
    pub mtu: Option<u16>,
}

/// A network and where it is described.
#[derive(Debug, Clone)]
pub struct Known {
    /// What it is.
    pub list: NetworkList,
    /// The file.
    pub path: PathBuf,
    /// Whether it is one of ours.
    pub ours: bool,
}

impl Known {
    /// Whether it has no way out.
    pub fn internal(&self) -> bool {
        self.ours && self.list.other.get(OURS).is_some_and(|ours| ours["internal"] == true)
    }

    /// Its subnets, as far as its list names them.
    pub fn subnets(&self) -> Vec<Cidr> {
        let ranges = self.list.plugins.iter().filter_map(|plugin| plugin.get("ipam"));
        let ranges = ranges.flat_map(|ipam| ipam["ranges"].as_array().into_iter().flatten());
        let ranges = ranges.flat_map(|set| set.as_array().into_iter().flatten());
        ranges.filter_map(|range| range["subnet"].as_str()?.parse().ok()).collect()
    }

    /// Its bridge, if it has one.
    pub fn bridge(&self) -> Option<&str> {
        self.plugin("bridge")?.get("bridge")?.as_str()
    }

    /// The name of its first plugin.
    pub fn driver(&self) -> &str {
        self.list.plugins.first().and_then(|plugin| plugin.get("type")?.as_str()).unwrap_or("")
    }

    fn plugin(&self, kind: &str) -> Option<&Map<String, Value>> {
        self.list.plugins.iter().find(|plugin| plugin.get("type") == Some(&json!(kind)))
    }
}

impl Networks {
    /// The networks below `dirs`.
    pub fn new(dirs: Dirs) -> Networks {
        Networks { dirs }
    }

    /// The network `name`. The default one is made if need be.
    ///
    /// # Errors
    /// When there is none, or its description is wrong.
    pub fn find(&self, name: &str) -> Result<Known, NetworkError> {
        match self.existing(name) {
            Err(NetworkError::NotFound(_)) if name == DEFAULT => {
                let ipv6 = link::router_of_ipv6().is_none();
                match self.create(DEFAULT, &Created { ipv6, ..Created::default() }) {
                    // Somebody else was as quick.
                    Err(NetworkError::Exists(_)) => self.existing(name),
                    other => other,
                }
            }
            other => other,
        }
    }

    /// The network `name`, if it is there.
    pub(super) fn existing(&self, name: &str) -> Result<Known, NetworkError> {
        let found = self.all()?.into_iter().find(|known| known.list.name == name);
        found.ok_or_else(|| NetworkError::NotFound(name.into()))
    }

    /// All networks: ours, then the host's, each by name. Lists of the host that cannot be
    /// read are left out, unless nothing else has the name: they are others' concern.
    ///
    /// # Errors
    /// When one of ours cannot be read.
    pub fn all(&self) -> Result<Vec<Known>, NetworkError> {
        let mut all = Vec::new();
        for path in lists(&self.dirs.networks()) {
            all.push(Known { list: NetworkList::read(&path)?, path, ours: true });
        }
        for path in lists(Path::new(HOST_LISTS)) {
            match NetworkList::read(&path) {
                Ok(list) if all.iter().all(|known| known.list.name != list.name) => {
                    all.push(Known { list, path, ours: false });
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("{}", crate::container::chain(&error)),
            }
        }
        Ok(all)
    }

    /// Makes a network. Its bridge comes with its first container.
    ///
    /// # Errors
    /// When it exists, or its subnets cannot be.
    pub fn create(&self, name: &str, options: &Created) -> Result<Known, NetworkError> {
        if !is_name(name) || ["none", "host", passt::NAME].contains(&name) {
            return Err(NetworkError::Name(name.into()));
        }
        let _lock = self.lock()?;
        let all = self.all()?;
        if all.iter().any(|known| known.list.name == name) {
            return Err(NetworkError::Exists(name.into()));
        }
        let subnets = choose_subnets(options, &all)?;
        let bridge = (0u32..).map(|number| format!("{BRIDGES}{number}"));
        let taken = |bridge: &String| {
            all.iter().any(|known| known.bridge() == Some(bridge)) || link::exists(bridge)
        };
        let bridge = bridge.into_iter().find(|bridge| !taken(bridge)).unwrap_or_default();
        let list = describe(name, &bridge, &subnets, options, &self.leases())?;
        let path = self.dirs.networks().join(format!("{name}.conflist"));
        write_json(&path, &list)?;
        Ok(Known { list, path, ours: true })
    }

    /// Removes a network of ours that no container is configured for, with its bridge.
    /// `users` lists those that are, while nobody can join.
    ///
    /// # Errors
    /// When there is none, or it is not ours; or that of `users`.
    pub fn remove<E: From<NetworkError>>(
        &self,
        name: &str,
        users: impl FnOnce() -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        let _lock = self.lock()?;
        let known = self.existing(name)?;
        if !known.ours {
            return Err(NetworkError::Foreign(name.into(), known.path).into());
        }
        let users = users()?;
        if !users.is_empty() {
            let (name, users) = (name.into(), users.join(", "));
            return Err(NetworkError::InUse { name, users }.into());
        }
        Ok(self.delete(&known)?)
    }

    fn delete(&self, known: &Known) -> Result<(), NetworkError> {
        if let Some(bridge) = known.bridge().filter(|bridge| link::exists(bridge)) {
            link::remove(bridge)?;
        }
        rules::forget_network(&known.subnets())?;
        let leases = self.leases().join(&known.list.name);
        dirs::remove_tree(&leases).map_err(FileError::access(&leases))?;
        std::fs::remove_file(&known.path).map_err(FileError::access(&known.path))?;
        Ok(())
    }

    /// Held while a network is made, removed, or its names are written.
    pub(super) fn lock(&self) -> Result<File, NetworkError> {
        let directory = self.dirs.networks();
        dirs::make_private(&directory).map_err(FileError::access(&directory))?;
        Ok(files::lock(&directory.join(".lock"))?)
    }

    /// Where host-local notes which addresses are taken: gone with a reboot, as those who
    /// have them.
    fn leases(&self) -> PathBuf {
        self.dirs.run.join("leases")
    }
}

/// Programs that our networks need and this host lacks.
pub fn missing() -> Vec<&'static str> {
    let path = PluginPath::from_env();
    let plugins = ["bridge", "host-local", "portmap", "firewall"];
    let plugins = plugins.into_iter().filter(|plugin| path.find(plugin).is_err());
    plugins
        .chain(["nft", "iptables"].into_iter().filter(|it| rules::program(it).is_none()))
        .collect()
}

/// Lists of networks in a directory, by name.
fn lists(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut lists: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "conflist")).collect();
    lists.sort();
    lists
}

fn choose_subnets(options: &Created, all: &[Known]) -> Result<Vec<Cidr>, NetworkError> {
    let taken: Vec<Cidr> = all.iter().flat_map(Known::subnets).chain(link::routed()).collect();
    let mut subnets = options.subnets.clone();
    if options.ipv6 || subnets.iter().any(|subnet| !subnet.is_ipv4()) {
        check_ipv6()?;
    }
    for (index, subnet) in subnets.iter().enumerate() {
        let wrong = |why: String| NetworkError::Subnet { subnet: subnet.to_string(), why };
        let most = if subnet.is_ipv4() { 30 } else { 126 };
        if subnet.length() > most || subnet.length() == 0 {
            return Err(wrong(format!("its length must be 1 to {most}")));
        }
        if subnets[..index].iter().any(|other| other.is_ipv4() == subnet.is_ipv4()) {
            return Err(wrong("there can be one for each version of IP".into()));
        }
        if let Some(other) = taken.iter().find(|other| other.overlaps(*subnet)) {
            return Err(wrong(format!("{other} is in use on this host")));
        }
    }
    if !subnets.iter().any(|subnet| subnet.is_ipv4()) {
        let of_pool = |third| Cidr::new([POOL[0], POOL[1], third, 0].into(), 24);
        let mut free = (0..=255).filter_map(of_pool);
        let free = free.find(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)));
        subnets.insert(0, free.ok_or(NetworkError::NoSubnet)?);
    }
    if options.ipv6 && subnets.iter().all(|subnet| subnet.is_ipv4()) {
        subnets.push(unique_local()?);
    }
    Ok(subnets)
}

/// Refuses what would cut the host off: where a host forwards IPv6, which CNI's bridge makes
/// it do, its kernel ignores the routers that it has its own way out from.
pub(super) fn check_ipv6() -> Result<(), NetworkError> {
    match link::router_of_ipv6() {
        Some(interface) => Err(NetworkError::Router(interface)),
        None => Ok(()),
    }
}

/// A subnet of unique local addresses: RFC 4193 wants 40 random bits, and ours are 56.
fn unique_local() -> Result<Cidr, NetworkError> {
    let random = crate::id::new_id().map_err(NetworkError::system("read /dev/urandom"))?;
    let bits = u128::from_str_radix(&random[..14], 16).unwrap_or_default();
    let address = std::net::Ipv6Addr::from_bits((0xfd << 120) | (bits << 64));
    Ok(Cidr::new(address.into(), 64).unwrap_or_else(|| Cidr::of(address.into())))
}

/// The list of a bridge with addresses of these subnets.
fn describe(
    name: &str,
    bridge: &str,
    subnets: &[Cidr],
    options: &Created,
    leases: &Path,
) -> Result<NetworkList, NetworkError> {
    let mut ranges = Vec::new();
    for subnet in subnets {
        let asked = options.gateways.iter().find(|gateway| subnet.contains(**gateway));
        let gateway = asked.copied().unwrap_or_else(|| subnet.first_host());
        ranges.push(json!([{ "subnet": subnet, "gateway": gateway }]));
    }
    let in_none = |gateway: &&IpAddr| !subnets.iter().any(|subnet| subnet.contains(**gateway));
    if let Some(gateway) = options.gateways.iter().find(in_none) {
        let why = "a gateway must be in one of the network's subnets".into();
        return Err(NetworkError::Subnet { subnet: gateway.to_string(), why });
    }
    let out = |subnet: &Cidr| json!({ "dst": if subnet.is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
    let routes: Vec<_> = subnets.iter().filter(|_| !options.internal).map(out).collect();
    let mut plugin = json!({
        "type": "bridge",
        "bridge": bridge,
        "isGateway": true,
        // Address translation is ours (`rules`): the plugin's own stays behind when a
        // namespace goes by itself.
        "ipMasq": false,
        // Also spares the guest duplicate address detection, which takes a second.
        "hairpinMode": true,
        "ipam": { "type": "host-local", "dataDir": leases, "ranges": ranges, "routes": routes },
    });
    if let Some(mtu) = options.mtu {
        plugin["mtu"] = json!(mtu);
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": name,
        OURS: { "internal": options.internal },
        "plugins": [
            plugin,
            { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
            { "type": "firewall" },
        ],
    });
    serde_json::from_value(list).map_err(|source| {
        FileError::Damaged { path: PathBuf::from(format!("{name}.conflist")), source }.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(dir: &Path) -> Networks {
        Networks::new(Dirs { run: dir.join("run"), lib: dir.join("lib") })
    }

    #[test]
    fn networks_are_made_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let all = networks(dir.path());
        let default = all.find(DEFAULT).unwrap();
        assert_eq!(default.subnets().len(), 2);
        assert!(default.subnets()[1].to_string().starts_with("fd"));
        let options = Created { mtu: Some(1400), internal: true, ..Created::default() };
        let second = all.create("second", &options).unwrap();
        assert!(second.internal() && second.ours);
        assert_ne!(second.bridge(), default.bridge());
        assert!(!second.subnets()[0].overlaps(default.subnets()[0]));
        let again = all.find("second").unwrap();
        assert_eq!(again.list, second.list);
        assert_eq!(again.list.plugins[0]["mtu"], 1400);
        assert_eq!(again.list.plugins[0]["ipam"]["routes"], json!([]));
        assert!(matches!(all.create("second", &options), Err(NetworkError::Exists(_))));
        let error = all.remove("second", || Ok::<_, NetworkError>(vec!["web".into()])).unwrap_err();
        assert!(error.to_string().contains("in use by web"));
        assert!(matches!(all.find("third"), Err(NetworkError::NotFound(_))));
        for taken in ["none", "passt"] {
            assert!(matches!(all.create(taken, &options), Err(NetworkError::Name(_))));
        }
    }

    #[test]
    fn subnets_that_cannot_be_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let all = networks(dir.path());
        let first =
            Created { subnets: vec!["10.99.0.0/24".parse().unwrap()], ..Created::default() };
        all.create("first", &first).unwrap();
        for (subnets, gateway, words) in [
            (vec!["10.99.0.128/25"], None, "in use"),
            (vec!["10.98.0.0/31"], None, "1 to 30"),
            (vec!["10.97.0.0/24", "10.98.0.0/24"], None, "one for each"),
            (vec!["10.98.0.0/24"], Some("10.97.0.1"), "gateway"),
        ] {
            let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
            let gateways = gateway.iter().map(|gateway| gateway.parse().unwrap()).collect();
            let options = Created { subnets, gateways, ..Created::default() };
            let error = all.create("x", &options).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
