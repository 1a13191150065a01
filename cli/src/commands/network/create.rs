//! `bulkhead network create`

use std::net::IpAddr;

use clap::Args;
use runtime::networks::Created;
use runtime::networks::cidr::Cidr;

/// Options of `network create`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Subnet, such as 10.1.0.0/24; one for each version of IP
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<Cidr>,
    /// Address of the host in a subnet; its first one otherwise
    #[arg(long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// Also a subnet of IPv6 (unique local addresses), if --subnet names none
    #[arg(long)]
    ipv6: bool,
    /// Without a way out
    #[arg(long)]
    internal: bool,
    /// Largest packet
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: Option<u16>,
    /// Its name
    name: String,
}

/// Makes a network, and prints its name.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let options = Created {
        subnets: arguments.subnet.clone(),
        gateways: arguments.gateway.clone(),
        ipv6: arguments.ipv6,
        internal: arguments.internal,
        mtu: arguments.mtu,
    };
    runtime::networks::check_root(&arguments.name)?;
    super::networks().create(&arguments.name, &options)?;
    crate::output::line(&arguments.name)?;
    Ok(0)
}
