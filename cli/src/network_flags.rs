//! Options of `run` for its network.

use std::net::IpAddr;

use anyhow::bail;
use clap::Args;
use runtime::networks::egress::Egress;
use runtime::networks::options::{Alias, ExtraHost, MAX_PORTS, Mode, Networking, Ports, Published};
use runtime::networks::{self, passt};
use runtime::rootless;

use crate::bandwidth_flags::BandwidthFlags;

/// Options for the network.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// none (loopback alone), bridge (the default), passt (without root the default), or the
    /// name of a network
    #[arg(long, visible_alias = "net", value_name = "NETWORK", env = "BULKHEAD_NETWORK")]
    network: Option<Mode>,
    /// A further name by which others of the network find the container
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<Alias>,
    /// Publish a port of the container on the host, or a range of them (8000-8003:9000-9003)
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    publish: Vec<Ports>,
    /// Name server, instead of the host's
    #[arg(long, value_name = "IP")]
    dns: Vec<IpAddr>,
    /// Search domain, instead of the host's
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<ExtraHost>,
    /// Where connections may go to: none, public, or NAME, IP, SUBNET, each with :PORT[/udp]
    #[arg(long, value_name = "LIST")]
    egress: Vec<String>,
    /// Let the container connect to the host itself, and to metadata services
    #[arg(long)]
    allow_host: bool,
    /// --ingress-rate, --egress-rate and what belongs to them
    #[command(flatten)]
    bandwidth: BandwidthFlags,
}

impl NetworkFlags {
    /// What was asked for.
    pub fn options(&self) -> anyhow::Result<Option<Networking>> {
        let egress = Egress::parse(&self.egress)?;
        let bandwidth = self.bandwidth.options()?;
        if let Some(domain) = self.dns_search.iter().find(|domain| !is_domain(domain)) {
            bail!("invalid search domain: {domain:?}");
        }
        let Mode::Named(network) = self.network.clone().unwrap_or_else(default) else {
            let useless = [
                (!self.publish.is_empty(), "--publish"),
                (egress.is_some_and(|policy| policy != Egress::default()), "--egress"),
                (!self.dns.is_empty() || !self.dns_search.is_empty(), "--dns"),
                (!self.add_host.is_empty(), "--add-host"),
                (self.allow_host, "--allow-host"),
                (!self.network_alias.is_empty(), "--network-alias"),
                (!bandwidth.is_free(), "a limit of what its network carries"),
            ];
            return match useless.iter().find(|(given, _)| *given) {
                Some((_, option)) => bail!("{option} is of no use with --network none"),
                None => Ok(None),
            };
        };
        if network == passt::NAME && !self.network_alias.is_empty() {
            bail!("--network-alias is of no use with --network passt: no other container is there");
        }
        let ports: Vec<Published> = self.publish.iter().flat_map(|ports| ports.0.clone()).collect();
        if ports.len() > MAX_PORTS {
            bail!("{} ports are to be published; {MAX_PORTS} are the most", ports.len());
        }
        Ok(Some(Networking {
            network,
            aliases: self.network_alias.clone(),
            ports,
            dns: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            hosts: self.add_host.clone(),
            egress,
            allow_host: self.allow_host,
            bandwidth,
        }))
    }
}

/// The network of whoever names none: passt's without root; and where there can be no bridge, passt makes one, and a
/// line tells so.
fn default() -> Mode {
    if rootless::is_rootless() {
        return Mode::Named(passt::NAME.into());
    }
    let missing = networks::missing();
    if missing.is_empty() || !passt::available() {
        return Mode::Named(networks::DEFAULT.into());
    }
    crate::errors::warn(&format!(
        "without {} there is no bridge: the container is behind passt (--network passt); see \
         `bulkhead doctor`",
        missing.join(", ")
    ));
    Mode::Named(passt::NAME.into())
}

fn is_domain(text: &str) -> bool {
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.len() <= 253 && text.bytes().all(byte)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: NetworkFlags,
    }

    fn options(words: &[&str]) -> anyhow::Result<Option<Networking>> {
        let line = [&["run"], words].concat();
        Line::try_parse_from(line)?.flags.options()
    }

    #[test]
    fn a_network_and_what_belongs_to_it() {
        let words = ["--network", "net", "-p", "80:80", "--egress", "none", "--dns-search", "."];
        let networking = options(&words).unwrap().unwrap();
        assert_eq!((networking.network.as_str(), networking.ports.len()), ("net", 1));
        assert_eq!(networking.egress, Some(Egress::default()));
        assert!(options(&["--network", "none"]).unwrap().is_none());
        assert!(options(&["--network", "none", "--egress", "none"]).unwrap().is_none());
    }

    #[test]
    fn ranges_aliases_and_rates() {
        let words = [
            &["--network", "net", "-p", "8000-8003:9000-9003", "-p", "53:53/udp"][..],
            &["--network-alias", "db", "--network-alias", "store", "--ingress-rate", "10mbit"],
            &["--egress-rate", "1gbit", "--egress-burst", "1m", "--egress-packets", "1000"],
        ];
        let networking = options(&words.concat()).unwrap().unwrap();
        assert_eq!(networking.ports.len(), 5);
        let names: Vec<_> = networking.aliases.iter().map(|alias| alias.0.as_str()).collect();
        assert_eq!(names, ["db", "store"]);
        let limits = networking.bandwidth.limits().unwrap();
        assert_eq!(limits.to_guest.bytes.unwrap().per_second, 1_250_000);
        assert_eq!(limits.from_guest.bytes.unwrap().burst, 1 << 20);
        assert_eq!(limits.from_guest.packets.unwrap().per_second, 1000);
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (words, said) in [
            (&["--network", "none", "--network-alias", "x"][..], "--network-alias is of no use"),
            (&["--network", "passt", "--network-alias", "x"], "no other container"),
            (&["--network", "net", "--network-alias", "a b"], "invalid alias"),
            (&["--network", "none", "--egress-rate", "1mbit"], "of no use with --network none"),
            (&["--network", "net", "--egress-rate", "0"], "between 1kbit and 1000tbit"),
            (&["--network", "net", "--ingress-rate", "10mbps"], "bits in a second"),
            (&["--network", "net", "--ingress-burst", "1m"], "without --ingress-rate"),
            (&["--network", "net", "-p", "80-82:80-81"], "as many ports"),
            (&["--network", "net", "-p", "1-5000:1-5000"], "4096 are the most"),
            (&["--network", "host"], "kernel of its own"),
            (&["--network", "none", "-p", "80:80"], "--publish is of no use"),
            (&["--network", "net", "--dns-search", "a b"], "invalid search domain"),
            (&["--network", "net", "--egress", "none,public"], "no other entry"),
        ] {
            let error = options(words).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
