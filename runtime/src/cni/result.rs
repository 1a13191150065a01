//! What ADD gives.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A result, as far as we look into it. 0.4 and 1.0 have the same fields here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniResult {
    /// Interfaces that were made, on the host and in the namespace.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default)]
    pub mac: String,
    /// The namespace, of one that is in it; empty on the host.
    #[serde(default)]
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `ADDRESS/LENGTH`.
    pub address: String,
    /// The way out.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Index of its interface.
    #[serde(default)]
    pub interface: Option<usize>,
}

impl CniResult {
    /// Interfaces on the host.
    pub fn on_host(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().filter(|interface| interface.sandbox.is_empty())
    }

    /// The first interface in the namespace.
    pub fn inside(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| !interface.sandbox.is_empty())
    }

    /// Addresses with the lengths of their prefixes. What is no address is left out.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.ips.iter().filter_map(|ip| {
            let (address, length) = ip.address.split_once('/')?;
            Some((address.parse().ok()?, length.parse().ok()?))
        })
    }

    /// Gateways.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().filter_map(|ip| ip.gateway)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_both_versions_are_read() {
        let text = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"br","mac":"02:00:00:00:00:01"},
            {"name":"veth1"},{"name":"eth0","mac":"x","sandbox":"/proc/1/fd/3"}],
            "ips":[{"version":"4","interface":2,"address":"10.0.0.2/24","gateway":"10.0.0.1"},
            {"address":"fd00::2/64"},{"address":"nonsense"}],"routes":[],"dns":{}}"#;
        let result: CniResult = serde_json::from_str(text).unwrap();
        assert_eq!(result.on_host().count(), 2);
        assert_eq!(result.inside().unwrap().name, "eth0");
        let addresses: Vec<_> = result.addresses().collect();
        assert_eq!(
            addresses,
            [("10.0.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)]
        );
        assert_eq!(result.gateways().count(), 1);
    }
}
