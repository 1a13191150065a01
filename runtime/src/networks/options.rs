//! What a person asks of a container's network: `--network`, `-p`, `--add-host` and the like.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bandwidth::Bandwidth;
use super::egress::Egress;

/// Most ports of the host that a container may have: each costs rules, or a socket.
pub const MAX_PORTS: usize = 4096;

/// Why it is no such option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `-p`.
    #[error(
        "invalid port {0:?} ([IP:]HOST-PORT:CONTAINER-PORT[/tcp|/udp], where either port may be \
         a range, FIRST-LAST)"
    )]
    Port(String),
    /// `-p` with two ranges that do not fit.
    #[error(
        "invalid ports {text:?}: {host} of the host cannot lead to {guest} of the container; \
         both ranges must have as many ports"
    )]
    Ranges {
        /// The option.
        text: String,
        /// How many ports of the host.
        host: usize,
        /// How many of the container.
        guest: usize,
    },
    /// `--network-alias`.
    #[error("invalid alias {0:?}: only letters, digits, -, _ and . are allowed, 253 at most")]
    Alias(String),
    /// `--add-host`.
    #[error("invalid host {0:?} (NAME:IP, or NAME:host-gateway)")]
    Host(String),
    /// `--network host`.
    #[error(
        "--network host is not possible: a machine has a kernel of its own, which cannot use \
         the host's interfaces. Publish ports with -p, and open the host's own services to \
         the container with --allow-host"
    )]
    HostNetwork,
    /// Not a name.
    #[error("invalid network {0:?} (none, bridge, or the name of a network)")]
    Network(String),
}

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A loopback interface, and nothing else.
    None,
    /// A network.
    Named(String),
}

impl FromStr for Mode {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Mode, OptionError> {
        match text {
            "none" => Ok(Mode::None),
            "host" => Err(OptionError::HostNetwork),
            name if crate::cni::is_name(name) => Ok(Mode::Named(name.into())),
            other => Err(OptionError::Network(other.into())),
        }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Protocol, ()> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            _ => Err(()),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Address of the host; all of them if absent.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Port of the host.
    pub host: u16,
    /// Port of the container.
    pub guest: u16,
    /// Of which protocol.
    pub protocol: Protocol,
}

/// `-p`: a port, or as many ports of the host as of the container, in the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(pub Vec<Published>);

impl FromStr for Ports {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Ports, OptionError> {
        let parse = || {
            let (rest, protocol) = match text.rsplit_once('/') {
                Some((rest, protocol)) => (rest, protocol.parse().ok()?),
                None => (text, Protocol::Tcp),
            };
            let (rest, guest) = rest.rsplit_once(':')?;
            let (address, host) = match rest.rsplit_once(':') {
                Some((address, host)) => (Some(unbracketed(address).parse().ok()?), host),
                None => (None, rest),
            };
            Some((address, range(host)?, range(guest)?, protocol))
        };
        let (address, hosts, guests, protocol) =
            parse().ok_or_else(|| OptionError::Port(text.into()))?;
        if hosts.len() != guests.len() {
            let (host, guest) = (hosts.len(), guests.len());
            return Err(OptionError::Ranges { text: text.into(), host, guest });
        }
        let port = |(host, guest)| Published { address, host, guest, protocol };
        Ok(Ports(hosts.zip(guests).map(port).collect()))
    }
}

/// `80`, or `80-89`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    (!range.is_empty()).then_some(range)
}

impl Published {
    /// As CNI's capability portMappings has it.
    pub(super) fn mapping(&self) -> Value {
        let mut mapping = json!({
            "hostPort": self.host,
            "containerPort": self.guest,
            "protocol": self.protocol.to_string(),
        });
        if let Some(address) = self.address {
            mapping["hostIP"] = json!(address);
        }
        mapping
    }

    /// Whether both want the same port of the host.
    pub(super) fn collides(&self, other: &Published) -> bool {
        let all = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
        self.host == other.host
            && self.protocol == other.protocol
            && (all(self.address) || all(other.address) || self.address == other.address)
    }
}

impl std::fmt::Display for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:")?,
            Some(v4) => write!(f, "{v4}:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol)
    }
}

pub(super) fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|&port| port > 0)
}

/// An IPv6 address stands in brackets where a port may follow.
pub(super) fn unbracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

/// `--add-host`: a line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address; that of the network's gateway, which is the host, if absent.
    pub address: Option<IpAddr>,
}

impl FromStr for ExtraHost {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<ExtraHost, OptionError> {
        let parse = || {
            let (name, address) = text.split_once(':')?;
            let address = match address {
                "host-gateway" => None,
                address => Some(unbracketed(address).parse().ok()?),
            };
            Some(ExtraHost { name: host_name(name)?, address })
        };
        parse().ok_or_else(|| OptionError::Host(text.into()))
    }
}

/// `--network-alias`: a further name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Alias(pub String);

impl FromStr for Alias {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Alias, OptionError> {
        host_name(text).map(Alias).ok_or_else(|| OptionError::Alias(text.into()))
    }
}

/// A name as DNS and /etc/hosts have it.
pub(super) fn host_name(name: &str) -> Option<String> {
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let valid = !name.is_empty() && name.len() <= 253 && name.bytes().all(byte);
    valid.then(|| name.to_owned())
}

/// All of it, as a container's configuration keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networking {
    /// Name of the network.
    pub network: String,
    /// Further names by which others of the network find the container.
    #[serde(default)]
    pub aliases: Vec<Alias>,
    /// Ports of the host.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Name servers instead of the host's.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Search domains instead of the host's.
    #[serde(default)]
    pub dns_search: Vec<String>,
    /// Lines of /etc/hosts.
    #[serde(default)]
    pub hosts: Vec<ExtraHost>,
    /// Where it may connect to; anywhere but the host if absent.
    #[serde(default)]
    pub egress: Option<Egress>,
    /// Whether it may connect to the host itself.
    #[serde(default)]
    pub allow_host: bool,
    /// How much it may receive and send.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!("none".parse(), Ok(Mode::None));
        assert_eq!("bridge".parse(), Ok(Mode::Named("bridge".into())));
        let error = "host".parse::<Mode>().unwrap_err().to_string();
        assert!(error.contains("kernel of its own") && error.contains("-p"), "{error}");
        assert!("../x".parse::<Mode>().is_err() && "".parse::<Mode>().is_err());
    }

    #[test]
    fn ports() {
        let published = |text: &str| {
            let Ports(all) = text.parse()?;
            Ok::<_, OptionError>(all.iter().map(Published::to_string).collect::<Vec<_>>().join(" "))
        };
        for (text, shown) in [
            ("80:8080", "80:8080/tcp"),
            ("127.0.0.1:80:8080/udp", "127.0.0.1:80:8080/udp"),
            ("[::1]:80:8080", "[::1]:80:8080/tcp"),
            ("8000-8002:9000-9002/udp", "8000:9000/udp 8001:9001/udp 8002:9002/udp"),
            ("[::1]:80-81:8080-8081", "[::1]:80:8080/tcp [::1]:81:8081/tcp"),
            ("65535-65535:1-1", "65535:1/tcp"),
        ] {
            assert_eq!(published(text).as_deref(), Ok(shown));
        }
        for bad in [
            "",
            "80",
            "0:80",
            "80:0",
            "80:70000",
            "80:80/sctp",
            "x:80:80",
            "80:80:80:80",
            "80-:80",
            "-80:80",
            "81-80:81-80",
            "0-1:0-1",
            "1-2-3:1-2-3",
            "65535-65536:1-2",
            "80-81",
        ] {
            assert_eq!(published(bad), Err(OptionError::Port(bad.into())), "{bad}");
        }
        for (text, host, guest) in [("80-82:80-81", 3, 2), ("80-81:80", 2, 1), ("80:80-81", 1, 2)] {
            let text = text.to_owned();
            assert_eq!(published(&text), Err(OptionError::Ranges { text, host, guest }));
        }
        let one = Published::test("127.0.0.1:80:1");
        let collides = |text: &str| one.collides(&Published::test(text));
        assert!(collides("80:2") && collides("127.0.0.1:80:2") && collides("0.0.0.0:80:2"));
        assert!(!collides("80:2/udp") && !collides("81:2") && !collides("10.0.0.1:80:2"));
        let mapping =
            json!({"hostPort": 80, "containerPort": 1, "protocol": "tcp", "hostIP": "127.0.0.1"});
        assert_eq!(one.mapping(), mapping);
    }

    impl Published {
        /// The only one.
        pub(in crate::networks) fn test(text: &str) -> Published {
            let Ports(mut all) = text.parse().unwrap();
            assert_eq!(all.len(), 1, "{text}");
            all.remove(0)
        }
    }

    #[test]
    fn aliases() {
        assert_eq!("db-1.a_b".parse(), Ok(Alias("db-1.a_b".into())));
        for bad in ["", "a b", "a\n1.2.3.4 b", "ä", &"a".repeat(254)] {
            assert_eq!(bad.parse::<Alias>(), Err(OptionError::Alias(bad.into())), "{bad}");
        }
    }

    /// As a release before had it, and as it comes back when a container starts again.
    #[test]
    fn what_was_asked_for_is_kept() {
        let old: Networking = serde_json::from_str(r#"{"network":"bridge"}"#).unwrap();
        assert!(old.bandwidth.is_free() && old.aliases.is_empty());
        let mut options = Networking { aliases: vec![Alias("db".into())], ..old };
        options.bandwidth.egress.rate = Some("10mbit".parse().unwrap());
        options.bandwidth.ingress.burst = Some("64k".parse().unwrap());
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Networking>(&json).unwrap(), options);
    }

    #[test]
    fn hosts() {
        let host: ExtraHost = "db:fd00::1".parse().unwrap();
        assert_eq!(host.address, Some("fd00::1".parse().unwrap()));
        assert_eq!("h:host-gateway".parse::<ExtraHost>().unwrap().address, None);
        for bad in ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "a\nb:1.2.3.4", "db:nowhere"] {
            assert!(bad.parse::<ExtraHost>().is_err(), "{bad}");
        }
    }
}
