//! What others are told of a container's place in its network.

use std::net::IpAddr;
use std::path::Path;

use super::options::Published;
use super::passt::Told;
use super::{NetworkError, record};

/// As far as it is known; nothing of one that is in no network now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its addresses, each with the length of its subnet.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Its ways out.
    pub gateways: Vec<IpAddr>,
    /// The hardware address of its interface.
    pub mac: Option<String>,
    /// Ports of the host that lead to it.
    pub ports: Vec<Published>,
}

/// Of the container whose directory is `lib`.
///
/// # Errors
/// When a file of it cannot be read.
pub fn standing(lib: &Path) -> Result<Standing, NetworkError> {
    if let Some(Told { addresses, gateways, ports }) = Told::read(lib)? {
        return Ok(Standing { addresses, gateways, mac: Some(Told::mac()), ports });
    }
    let Some(record) = record::read(lib)? else { return Ok(Standing::default()) };
    let result = record.outcome().unwrap_or_default();
    Ok(Standing {
        addresses: result.addresses().collect(),
        gateways: result.gateways().collect(),
        mac: result.inside().map(|interface| interface.mac.clone()),
        ports: record.ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_either_kind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(standing(dir.path()).unwrap(), Standing::default());
        let told = r#"{"addresses":[["10.86.0.2",24]],"gateways":["10.86.0.1"],"ports":[]}"#;
        std::fs::write(dir.path().join("passt.json"), told).unwrap();
        let of_passt = standing(dir.path()).unwrap();
        assert_eq!(of_passt.addresses, [("10.86.0.2".parse().unwrap(), 24)]);
        assert_eq!(of_passt.mac.as_deref(), Some("02:62:6b:68:00:02"));
    }
}
