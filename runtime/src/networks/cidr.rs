//! Addresses that begin alike: `10.0.0.0/8`, `fd00::/8`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A prefix. The bits after it are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    length: u8,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subnet {0:?} (ADDRESS/LENGTH, such as 10.1.0.0/24 or fd01::/64)")]
pub struct CidrError(String);

impl Cidr {
    /// The first `length` bits of `address`.
    pub fn new(address: IpAddr, length: u8) -> Option<Cidr> {
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
            _ => return None,
        };
        Some(Cidr { address, length })
    }

    /// One address alone.
    pub fn of(address: IpAddr) -> Cidr {
        Cidr { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Its length.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether `address` is one of it.
    pub fn contains(self, address: IpAddr) -> bool {
        Cidr::new(address, self.length) == Some(self)
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Cidr) -> bool {
        let shorter = self.length.min(other.length);
        self.is_ipv4() == other.is_ipv4()
            && Cidr::new(self.address, shorter) == Cidr::new(other.address, shorter)
    }

    /// What is in both: the narrower one, if it is in the other.
    pub fn intersection(self, other: Cidr) -> Option<Cidr> {
        let narrower = if self.length >= other.length { self } else { other };
        self.overlaps(other).then_some(narrower)
    }

    /// Its first address that a host can have.
    pub fn first_host(self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().saturating_add(1)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().saturating_add(1)).into(),
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            Cidr::new(address.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| CidrError(text.into()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Cidr, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn bits_after_the_prefix_are_dropped() {
        assert_eq!(cidr("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(cidr("fd00:1::1/16").to_string(), "fd00::/16");
        assert_eq!(cidr("1.2.3.4/0").to_string(), "0.0.0.0/0");
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/8/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_in_it_and_what_overlaps() {
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.9.0.0/16")));
        assert!(cidr("10.9.0.0/16").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.0.0.0/16").overlaps(cidr("10.1.0.0/16")));
        assert!(!cidr("0.0.0.0/0").overlaps(cidr("::/0")));
        let both = cidr("10.0.0.0/8").intersection(cidr("10.9.0.0/16"));
        assert_eq!(both, Some(cidr("10.9.0.0/16")));
        assert_eq!(cidr("10.9.0.0/16").intersection(cidr("10.0.0.0/8")), both);
        assert_eq!(cidr("10.9.0.0/16").intersection(cidr("10.8.0.0/16")), None);
        assert!(cidr("10.0.0.0/8").contains("10.255.0.1".parse().unwrap()));
        assert!(!cidr("10.0.0.0/8").contains("fd00::1".parse().unwrap()));
        assert_eq!(cidr("fd00::/64").first_host().to_string(), "fd00::1");
    }

    proptest! {
        #[test]
        fn text_round_trips(bits: u32, length in 0u8..=32) {
            let one = Cidr::new(Ipv4Addr::from_bits(bits).into(), length).unwrap();
            prop_assert_eq!(one.to_string().parse::<Cidr>().unwrap(), one);
            prop_assert!(one.contains(Ipv4Addr::from_bits(bits).into()));
        }
    }
}
