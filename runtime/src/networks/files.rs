//! /etc/hosts, /etc/resolv.conf and /etc/hostname of a container with a network: files in
//! its directory, which the guest sees live.

use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::NetworkError;
use super::egress::Pinned;
use super::options::Networking;
use crate::dirs;
use crate::files::FileError;
use crate::spec::passable_resolv_conf;

/// The files of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// /etc/hosts
    pub hosts: PathBuf,
    /// /etc/resolv.conf
    pub resolv: PathBuf,
    /// /etc/hostname
    pub hostname: PathBuf,
}

impl Paths {
    /// Each with its place in the container.
    pub fn places(&self) -> [(&Path, &'static str); 3] {
        [
            (&self.hosts, "/etc/hosts"),
            (&self.resolv, "/etc/resolv.conf"),
            (&self.hostname, "/etc/hostname"),
        ]
    }
}

/// The files of the container whose directory is `lib`.
pub fn paths(lib: &Path) -> Paths {
    let directory = lib.join("etc");
    Paths {
        hosts: directory.join("hosts"),
        resolv: directory.join("resolv.conf"),
        hostname: directory.join("hostname"),
    }
}

/// What the container is called, and where it is.
pub(super) struct Identity<'a> {
    pub(super) hostname: &'a str,
    pub(super) name: &'a str,
    pub(super) addresses: &'a [IpAddr],
    pub(super) gateway: Option<IpAddr>,
    pub(super) pinned: &'a [Pinned],
}

/// Writes all three anew.
pub(super) fn write(lib: &Path, options: &Networking, who: &Identity) -> Result<(), NetworkError> {
    let paths = paths(lib);
    let directory = lib.join("etc");
    dirs::make_private(&directory).map_err(FileError::access(&directory))?;
    let hostname = format!("{}\n", who.hostname);
    let resolv = resolv_conf(options);
    for (path, text) in
        [(paths.hosts, hosts(options, who)), (paths.resolv, resolv), (paths.hostname, hostname)]
    {
        replace(&path, text.as_bytes())?;
    }
    Ok(())
}

/// Name servers that the container is told.
pub(super) fn name_servers(options: &Networking) -> Vec<IpAddr> {
    let text = resolv_conf(options);
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    // A zone (fe80::1%eth0) is one of the host's interfaces.
    servers.filter_map(|address| address.trim().parse().ok()).collect()
}

fn resolv_conf(options: &Networking) -> String {
    let host = passable_resolv_conf();
    let ours = |word: &str| match word {
        "nameserver" => !options.dns.is_empty(),
        "search" | "domain" => !options.dns_search.is_empty(),
        _ => false,
    };
    let kept = host.lines().filter(|line| !ours(line.split_whitespace().next().unwrap_or("")));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    for address in &options.dns {
        text.push_str(&format!("nameserver {address}\n"));
    }
    // `--dns-search .` takes the host's domains away, as with docker.
    let domains: Vec<&str> =
        options.dns_search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    if !domains.is_empty() {
        text.push_str(&format!("search {}\n", domains.join(" ")));
    }
    text
}

fn hosts(options: &Networking, who: &Identity) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let mut names = vec![who.hostname];
    for name in [who.name].into_iter().chain(options.aliases.iter().map(|alias| alias.0.as_str())) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for address in who.addresses {
        text.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    for host in &options.hosts {
        if let Some(address) = host.address.or(who.gateway) {
            text.push_str(&format!("{address}\t{}\n", host.name));
        }
    }
    for pin in who.pinned {
        text.push_str(&format!("{}\t{}\n", pin.address, pin.name));
    }
    text
}

/// Writes a file that a guest has open: the same file, never empty in between.
pub(super) fn replace(path: &Path, text: &[u8]) -> Result<(), NetworkError> {
    use std::io::Write;
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::File::options();
        options.write(true).create(true).truncate(false).mode(0o644);
        let mut file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        file.write_all(text)?;
        file.set_len(text.len() as u64)
    };
    Ok(write().map_err(FileError::access(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_name_servers() {
        let options = Networking {
            dns: vec!["1.1.1.1".parse().unwrap(), "2606:4700::1".parse().unwrap()],
            dns_search: vec!["a.example".into(), "b.example".into()],
            aliases: ["web", "www"].map(|alias| alias.parse().unwrap()).to_vec(),
            hosts: vec!["db:10.0.0.9".parse().unwrap(), "host:host-gateway".parse().unwrap()],
            ..Networking::default()
        };
        let pinned = Pinned { name: "ex.example".into(), address: "192.0.2.1".parse().unwrap() };
        let who = Identity {
            hostname: "h",
            name: "web",
            addresses: &["10.87.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            gateway: Some("10.87.0.1".parse().unwrap()),
            pinned: &[pinned],
        };
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &options, &who).unwrap();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let paths = paths(dir.path());
        let hosts = read(paths.hosts);
        for line in [
            "10.87.0.2\th web www",
            "fd00::2\th web www",
            "10.0.0.9\tdb",
            "10.87.0.1\thost",
            "192.0.2.1\tex.example",
        ] {
            assert!(hosts.lines().any(|have| have == line), "{line} in {hosts}");
        }
        let resolv = read(paths.resolv);
        assert!(resolv.ends_with(
            "nameserver 1.1.1.1\nnameserver 2606:4700::1\nsearch a.example b.example\n"
        ));
        assert_eq!(resolv.matches("search ").count(), 1);
        assert_eq!(name_servers(&options), options.dns);
        assert_eq!(read(paths.hostname), "h\n");
    }

    #[test]
    fn a_file_stays_the_same_one() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        replace(&path, b"a long text\n").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        replace(&path, b"short\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short\n");
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }
}
