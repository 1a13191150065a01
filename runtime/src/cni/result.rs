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
    /// Address and length of its prefix.
    pub address: Address,
    /// The way out.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Index of its interface.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// `ADDRESS/LENGTH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(pub IpAddr, pub u8);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Address, String> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Some(Address(address.parse().ok()?, length.parse().ok()?))
        };
        parse().ok_or_else(|| format!("{text:?} is not ADDRESS/LENGTH"))
    }
}

impl From<Address> for String {
    fn from(Address(address, length): Address) -> String {
        format!("{address}/{length}")
    }
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

    /// Addresses with the lengths of their prefixes.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.ips.iter().map(|ip| (ip.address.0, ip.address.1))
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
            {"address":"fd00::2/64"}],"routes":[],"dns":{}}"#;
        let result: CniResult = serde_json::from_str(text).unwrap();
        assert_eq!(result.on_host().count(), 2);
        assert_eq!(result.inside().unwrap().name, "eth0");
        let addresses: Vec<_> = result.addresses().collect();
        assert_eq!(
            addresses,
            [("10.0.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)]
        );
        assert_eq!(result.gateways().count(), 1);
        for wrong in ["nonsense", "10.0.0.2", "10.0.0/8", "10.0.0.2/x"] {
            let text = text.replace("fd00::2/64", wrong);
            let error = serde_json::from_str::<CniResult>(&text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
