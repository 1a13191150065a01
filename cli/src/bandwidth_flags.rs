//! Options of `run` for how much its network carries.

use anyhow::bail;
use clap::Args;
use runtime::networks::bandwidth::{Bandwidth, BitRate, Burst, PacketRate, Way};

/// Options for rates. Received is what the container receives, whoever asked for it.
#[derive(Debug, Args)]
pub struct BandwidthFlags {
    /// Most that the container receives, in bits a second, such as 10mbit
    #[arg(long, value_name = "RATE")]
    ingress_rate: Option<BitRate>,
    /// Bytes that it may receive at once beyond that (a tenth of a second's worth, at least 64k)
    #[arg(long, value_name = "BYTES")]
    ingress_burst: Option<Burst>,
    /// Most packets that the container receives in a second
    #[arg(long, value_name = "NUMBER")]
    ingress_packets: Option<PacketRate>,
    /// Most that the container sends, in bits a second, such as 10mbit
    #[arg(long, value_name = "RATE")]
    egress_rate: Option<BitRate>,
    /// Bytes that it may send at once beyond that (a tenth of a second's worth, at least 64k)
    #[arg(long, value_name = "BYTES")]
    egress_burst: Option<Burst>,
    /// Most packets that the container sends in a second
    #[arg(long, value_name = "NUMBER")]
    egress_packets: Option<PacketRate>,
}

impl BandwidthFlags {
    /// What was asked for.
    pub fn options(&self) -> anyhow::Result<Bandwidth> {
        let way = |name: &str, rate: Option<_>, burst: Option<_>, packets| {
            if burst.is_some() && rate.is_none() {
                bail!("--{name}-burst is of no use without --{name}-rate");
            }
            Ok(Way { rate, burst, packets })
        };
        let BandwidthFlags { ingress_rate, ingress_burst, ingress_packets, .. } = *self;
        let BandwidthFlags { egress_rate, egress_burst, egress_packets, .. } = *self;
        Ok(Bandwidth {
            ingress: way("ingress", ingress_rate, ingress_burst, ingress_packets)?,
            egress: way("egress", egress_rate, egress_burst, egress_packets)?,
        })
    }
}
