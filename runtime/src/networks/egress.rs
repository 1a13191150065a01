//! `--egress`: where a container may connect to.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;
use super::options::{Protocol, host_name, port, unbracketed};

/// Longest that the host may look for all names.
const LIMIT: Duration = Duration::from_secs(30);
/// Most entries of a policy.
const MAX_ENTRIES: usize = 256;

/// Why it is no policy.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// An entry.
    #[error(
        "invalid entry {0:?} of --egress (none, public, or NAME, ADDRESS or SUBNET, each with \
         :PORT[/udp] if need be; IPv6 in brackets before a port)"
    )]
    Entry(String),
    /// `none` and more.
    #[error("--egress none allows nothing: no other entry can stand beside it")]
    NoneAndMore,
    /// Too many.
    #[error("--egress has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// The host does not know the name.
    #[error("cannot resolve {name:?} of --egress on the host")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A policy: what is not named is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// All addresses of the Internet.
    #[serde(default)]
    pub public: bool,
    /// And these.
    #[serde(default)]
    pub entries: Vec<Entry>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub to: Target,
    /// Which port of it; all, and all protocols, if absent.
    #[serde(default)]
    pub port: Option<(u16, Protocol)>,
}

/// Where an entry leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Addresses.
    Subnet(Cidr),
    /// What the host finds by this name when the container starts.
    Name(String),
}

impl Egress {
    /// A policy of the values of the option, each a list with commas.
    ///
    /// # Errors
    /// Names the entry.
    pub fn parse(values: &[String]) -> Result<Option<Egress>, EgressError> {
        let words: Vec<&str> =
            values.iter().flat_map(|value| value.split(',')).map(str::trim).collect();
        if words.is_empty() {
            return Ok(None);
        }
        if words.len() > MAX_ENTRIES {
            return Err(EgressError::TooMany);
        }
        let mut policy = Egress::default();
        for word in &words {
            match *word {
                "none" if words.len() > 1 => return Err(EgressError::NoneAndMore),
                "none" => {}
                "public" => policy.public = true,
                entry => policy.entries.push(entry.parse()?),
            }
        }
        Ok(Some(policy))
    }

    /// What it allows, with the addresses that its names have now; and those names.
    ///
    /// # Errors
    /// When a name has no address, or the host does not find all of them in time.
    pub fn resolve(&self) -> Result<(Vec<Allowed>, Vec<Pinned>), EgressError> {
        let deadline = Instant::now() + LIMIT;
        let (mut allowed, mut pinned) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            match &entry.to {
                Target::Subnet(to) => allowed.push(Allowed { to: *to, port: entry.port }),
                Target::Name(name) => {
                    for address in look_up(name, deadline)? {
                        allowed.push(Allowed { to: Cidr::of(address), port: entry.port });
                        pinned.push(Pinned { name: name.clone(), address });
                    }
                }
            }
        }
        Ok((allowed, pinned))
    }
}

/// A part of a policy that packets can be compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Destinations.
    pub to: Cidr,
    /// Which port of them.
    pub port: Option<(u16, Protocol)>,
}

/// A name of a policy, and what it means while the container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The name.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

/// The C library has no bound for it, and its thread no end but its own.
fn look_up(name: &str, deadline: Instant) -> Result<Vec<IpAddr>, EgressError> {
    let failed = |source| EgressError::Name { name: name.into(), source };
    let (sender, found) = channel();
    let asked = name.to_owned();
    std::thread::spawn(move || {
        let found = (asked.as_str(), 0).to_socket_addrs();
        sender.send(found.map(|all| all.map(|address| address.ip()).collect::<Vec<_>>()))
    });
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    let left = deadline.saturating_duration_since(Instant::now());
    let found = found.recv_timeout(left).map_err(late);
    let mut all = found.and_then(|found| found).map_err(failed)?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

impl FromStr for Entry {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Entry, EgressError> {
        let wrong = || EgressError::Entry(text.into());
        if let Some(to) = address(text) {
            return Ok(Entry { to: Target::Subnet(to), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, ports)) => {
                let (number, protocol) = ports.split_once('/').unwrap_or((ports, "tcp"));
                let protocol = protocol.parse().map_err(|()| wrong())?;
                (host, Some((port(number).ok_or_else(wrong)?, protocol)))
            }
            None => (text, None),
        };
        // Before a port, IPv6 without brackets would be a matter of guesses.
        let bare = if host.contains(':') && !host.starts_with('[') { None } else { address(host) };
        let to = match bare {
            Some(to) => Target::Subnet(to),
            // What looks like an address, and is none, is no name either.
            None if host.bytes().all(|byte| byte.is_ascii_digit() || b"./".contains(&byte)) => {
                return Err(wrong());
            }
            None => Target::Name(host_name(host).ok_or_else(wrong)?),
        };
        Ok(Entry { to, port })
    }
}

/// An address or a subnet.
fn address(text: &str) -> Option<Cidr> {
    let text = unbracketed(text);
    text.parse().ok().or_else(|| text.parse().ok().map(Cidr::of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(values: &[&str]) -> Result<Option<Egress>, EgressError> {
        let values: Vec<String> = values.iter().map(|value| (*value).into()).collect();
        Egress::parse(&values)
    }

    #[test]
    fn policies() {
        assert_eq!(policy(&[]).unwrap(), None);
        assert_eq!(policy(&["none"]).unwrap(), Some(Egress::default()));
        let both = policy(&["public,10.0.0.5:5432", "example.org"]).unwrap().unwrap();
        assert!(both.public && both.entries.len() == 2);
        assert!(matches!(policy(&["none,public"]), Err(EgressError::NoneAndMore)));
        assert!(matches!(policy(&["none", "10.0.0.1"]), Err(EgressError::NoneAndMore)));
        assert!(matches!(policy(&["1.1.1.1,"]), Err(EgressError::Entry(_))));
        assert!(matches!(
            policy(&["10.0.0.1,".repeat(300).trim_end_matches(',')]),
            Err(EgressError::TooMany)
        ));
    }

    #[test]
    fn entries() {
        let entry = |text: &str| text.parse::<Entry>().unwrap();
        let subnet = |text: &str| Target::Subnet(text.parse().unwrap());
        assert_eq!(entry("10.0.0.0/8").to, subnet("10.0.0.0/8"));
        assert_eq!(entry("fd00::1").to, subnet("fd00::1/128"));
        let https = entry("[2001:db8::/32]:443");
        assert_eq!((https.to, https.port), (subnet("2001:db8::/32"), Some((443, Protocol::Tcp))));
        let dns = entry("dns.example:53/udp");
        assert_eq!(dns.to, Target::Name("dns.example".into()));
        assert_eq!(dns.port, Some((53, Protocol::Udp)));
        assert_eq!(entry("1.2.3.0/24:80").to, subnet("1.2.3.0/24"));
        for bad in
            ["", "10.0.0", "10.0.0.0/40", "a b", "x:0", "x:80/sctp", "fd00::1:x", "a\"b", "a;b"]
        {
            assert!(bad.parse::<Entry>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_become_addresses_when_it_starts() {
        let policy = policy(&["localhost:80,10.0.0.0/8"]).unwrap().unwrap();
        let (allowed, pinned) = policy.resolve().unwrap();
        assert!(pinned.iter().any(|pin| pin.name == "localhost" && pin.address.is_loopback()));
        assert_eq!(allowed.len(), pinned.len() + 1);
        let unknown = "nowhere.invalid".parse().unwrap();
        let policy = Egress { public: false, entries: vec![unknown] };
        assert!(policy.resolve().unwrap_err().to_string().contains("\"nowhere.invalid\""));
        let late = look_up("localhost", Instant::now() - Duration::from_secs(1));
        assert!(matches!(late, Err(EgressError::Name { source, .. })
            if source.kind() == io::ErrorKind::TimedOut));
    }
}
