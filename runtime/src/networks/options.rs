//! What a person asks of a container's network: `--network`, `-p`, `--add-host` and the like.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::egress::Egress;

/// Why it is no such option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// `-p`.
    #[error("invalid port {0:?} ([IP:]HOST-PORT:CONTAINER-PORT[/tcp|/udp])")]
    Port(String),
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

/// `-p`: a port of the host that leads to one of the container.
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

impl FromStr for Published {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Published, OptionError> {
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
            Some(Published { address, host: port(host)?, guest: port(guest)?, protocol })
        };
        parse().ok_or_else(|| OptionError::Port(text.into()))
    }
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
        let published = |text: &str| text.parse::<Published>().map(|port| port.to_string());
        for (text, shown) in [
            ("80:8080", "80:8080/tcp"),
            ("127.0.0.1:80:8080/udp", "127.0.0.1:80:8080/udp"),
            ("[::1]:80:8080", "[::1]:80:8080/tcp"),
        ] {
            assert_eq!(published(text).as_deref(), Ok(shown));
        }
        for bad in ["", "80", "0:80", "80:0", "80:70000", "80:80/sctp", "x:80:80", "80:80:80:80"] {
            assert!(published(bad).is_err(), "{bad}");
        }
        let one: Published = "127.0.0.1:80:1".parse().unwrap();
        let collides = |text: &str| one.collides(&text.parse().unwrap());
        assert!(collides("80:2") && collides("127.0.0.1:80:2") && collides("0.0.0.0:80:2"));
        assert!(!collides("80:2/udp") && !collides("81:2") && !collides("10.0.0.1:80:2"));
        let mapping =
            json!({"hostPort": 80, "containerPort": 1, "protocol": "tcp", "hostIP": "127.0.0.1"});
        assert_eq!(one.mapping(), mapping);
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
