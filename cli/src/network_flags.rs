//! Options of `run` for its network.

use std::net::IpAddr;

use anyhow::bail;
use clap::Args;
use runtime::networks::egress::Egress;
use runtime::networks::options::{ExtraHost, Mode, Networking, Published};
use runtime::networks::{self, passt};
use runtime::rootless;

/// Options for the network.
#[derive(Debug, Args)]
pub struct NetworkFlags {
    /// none (loopback alone), bridge (the default), passt (without root the default), or the
    /// name of a network
    #[arg(long, visible_alias = "net", value_name = "NETWORK", env = "BULKHEAD_NETWORK")]
    network: Option<Mode>,
    /// Publish a port of the container on the host
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    publish: Vec<Published>,
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
}

impl NetworkFlags {
    /// What was asked for.
    pub fn options(&self) -> anyhow::Result<Option<Networking>> {
        let egress = Egress::parse(&self.egress)?;
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
            ];
            return match useless.iter().find(|(given, _)| *given) {
                Some((_, option)) => bail!("{option} is of no use with --network none"),
                None => Ok(None),
            };
        };
        Ok(Some(Networking {
            network,
            ports: self.publish.clone(),
            dns: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            hosts: self.add_host.clone(),
            egress,
            allow_host: self.allow_host,
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
    fn what_cannot_be_is_told() {
        for (words, said) in [
            (&["--network", "host"][..], "kernel of its own"),
            (&["--network", "none", "-p", "80:80"], "--publish is of no use"),
            (&["--network", "net", "--dns-search", "a b"], "invalid search domain"),
            (&["--network", "net", "--egress", "none,public"], "no other entry"),
        ] {
            let error = options(words).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
