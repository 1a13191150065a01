//! How much a container may receive and send: `--ingress-rate`, `--egress-rate` and what
//! belongs to them. The words are those of CNI's plugin `bandwidth`; the VMM keeps the limits
//! (`protocol::machine::RateLimits`), so that they hold on every network.

use std::str::FromStr;

use protocol::machine::{Limit, Rate, RateLimits};
use serde::{Deserialize, Serialize};

use crate::limits::Bytes;

/// Least and most bits in a second, as Kubernetes has them.
const BITS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Most packets in a second.
const MAX_PACKETS: u64 = 1_000_000_000;
/// Largest burst in bytes, as of CNI's plugin.
const MAX_BURST: u64 = u32::MAX as u64;
/// Largest frame in bytes: what a burst is not less than unless somebody asks for it.
const FRAME: u64 = 64 << 10;
/// The part of a second whose worth a burst is, unless somebody asks for another.
const PART: u64 = 10;

/// Why it is no such limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BandwidthError {
    /// Not a rate.
    #[error(
        "invalid rate {0:?}: bits in a second, such as 10mbit, 1.5gbit or 500000 (k, m, g and t \
         are powers of 1000)"
    )]
    Rate(String),
    /// A rate that no network has.
    #[error("the rate {0:?} is not possible: it must be between 1kbit and 1000tbit in a second")]
    RateRange(String),
    /// Not a number of packets.
    #[error("invalid packet rate {0:?}: packets in a second, between 1 and {MAX_PACKETS}")]
    Packets(String),
    /// A burst that cannot be.
    #[error("the burst {0:?} is not possible: it must be between 1 and {MAX_BURST} bytes")]
    BurstRange(String),
    /// Not a burst.
    #[error(transparent)]
    Burst(#[from] crate::limits::LimitError),
}

/// Bits in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BitRate(pub u64);

impl FromStr for BitRate {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<BitRate, BandwidthError> {
        let bits = bits(text).ok_or_else(|| BandwidthError::Rate(text.into()))?;
        if bits < *BITS.start() as f64 || bits > *BITS.end() as f64 {
            return Err(BandwidthError::RateRange(text.into()));
        }
        Ok(BitRate(bits.round() as u64))
    }
}

/// As tc(8) has them; not its `mbps`, which are bytes there and bits elsewhere.
fn bits(text: &str) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let factor = match unit.strip_suffix("bit").unwrap_or(unit) {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Packets in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PacketRate(pub u64);

impl FromStr for PacketRate {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<PacketRate, BandwidthError> {
        let number = text.parse().ok().filter(|number| (1..=MAX_PACKETS).contains(number));
        number.map(PacketRate).ok_or_else(|| BandwidthError::Packets(text.into()))
    }
}

/// Bytes that may pass at once, after a time in which nothing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Burst(pub u64);

impl FromStr for Burst {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Burst, BandwidthError> {
        let Bytes(bytes) = text.parse()?;
        match bytes {
            1..=MAX_BURST => Ok(Burst(bytes)),
            _ => Err(BandwidthError::BurstRange(text.into())),
        }
    }
}

/// Of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    /// Without it, as much as passes.
    pub rate: Option<BitRate>,
    /// Of the rate: a tenth of a second's worth without it, and 64 KiB at least.
    pub burst: Option<Burst>,
    /// Without it, as many as pass.
    pub packets: Option<PacketRate>,
}

impl Way {
    fn limit(&self) -> Limit {
        let bytes = self.rate.map(|BitRate(bits)| {
            let per_second = bits / 8;
            let usual = (per_second / PART).clamp(FRAME, MAX_BURST);
            Rate { per_second, burst: self.burst.map_or(usual, |burst| burst.0) }
        });
        let packets = self
            .packets
            .map(|PacketRate(per_second)| Rate { per_second, burst: (per_second / PART).max(1) });
        Limit { bytes, packets }
    }
}

/// Of both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// What the container receives.
    pub ingress: Way,
    /// What it sends.
    pub egress: Way,
}

impl Bandwidth {
    /// Whether nothing is limited.
    pub fn is_free(&self) -> bool {
        *self == Bandwidth::default()
    }

    /// As the VMM has them; nothing, if nothing is limited.
    pub fn limits(&self) -> Option<RateLimits> {
        let limits =
            || RateLimits { to_guest: self.ingress.limit(), from_guest: self.egress.limit() };
        (!self.is_free()).then(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        for (text, bits) in [
            ("500000", 500_000),
            ("1kbit", 1_000),
            ("10mbit", 10_000_000),
            ("10Mbit", 10_000_000),
            ("10M", 10_000_000),
            ("1.5gbit", 1_500_000_000),
            ("64000bit", 64_000),
            ("1000tbit", 1_000_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(BitRate(bits)), "{text}");
        }
        for bad in ["", "mbit", "10mbps", "10mib", "10 mbit", "-1", "1e6", "1.2.3", "nan", "inf"] {
            assert_eq!(bad.parse::<BitRate>(), Err(BandwidthError::Rate(bad.into())), "{bad}");
        }
        for far in ["0", "0mbit", "999", "1001tbit", &"9".repeat(400)] {
            assert_eq!(far.parse::<BitRate>(), Err(BandwidthError::RateRange(far.into())), "{far}");
        }
    }

    #[test]
    fn bursts_and_packets() {
        assert_eq!("256k".parse(), Ok(Burst(256 << 10)));
        assert_eq!("4294967295".parse(), Ok(Burst(MAX_BURST)));
        for bad in ["0", "4g", "x", ""] {
            assert!(bad.parse::<Burst>().is_err(), "{bad}");
        }
        assert_eq!("1".parse(), Ok(PacketRate(1)));
        for bad in ["0", "-1", "1.5", "1000000001", "many"] {
            assert!(bad.parse::<PacketRate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_as_the_vmm_has_them() {
        assert_eq!(Bandwidth::default().limits(), None);
        let slow = Way { rate: Some(BitRate(1_000_000)), ..Way::default() };
        let egress = Way {
            rate: Some(BitRate(800_000_000)),
            burst: Some(Burst(9000)),
            packets: Some(PacketRate(500)),
        };
        let limits = Bandwidth { ingress: slow, egress }.limits().unwrap();
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(limits.to_guest, Limit { bytes: rate(125_000, FRAME), packets: None });
        let from_guest = Limit { bytes: rate(100_000_000, 9000), packets: rate(500, 50) };
        assert_eq!(limits.from_guest, from_guest);
        let usual = Way { burst: None, ..egress }.limit();
        assert_eq!(usual.bytes, rate(100_000_000, 10_000_000));
        let least = Way { packets: Some(PacketRate(1)), ..Way::default() }.limit();
        assert_eq!((least.bytes, least.packets), (None, rate(1, 1)));
    }
}
