//! What the rules have refused, by their counters: of one container, or of all at once.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{anonymous_file, chain, nft, nft_up_to};
use crate::networks::NetworkError;

/// Most bytes that a listing of one table is read: thousands of containers.
const MAX_LISTING: u64 = 64 << 20;

/// Packets that were refused, by what they were for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// The host's own addresses, broadcasts and multicasts to it; and whatever comes from
    /// an address that is not the container's.
    pub host: u64,
    /// Metadata services.
    pub metadata: u64,
    /// Containers of other networks.
    pub networks: u64,
    /// What `--egress` does not allow, or any way out of an internal network.
    pub egress: u64,
    /// Router advertisements to its neighbours.
    pub routers: u64,
    /// Frames that the VMM dropped: from addresses that are not the container's, or of a kind
    /// that no container sends. Nothing, where nobody can tell any more.
    pub guard: Option<u64>,
    /// Frames that the VMM dropped since they were none, or asked for what does not fit them.
    pub malformed: Option<u64>,
}

impl Refused {
    /// Both together.
    pub(in crate::networks) fn and(self, other: Refused) -> Refused {
        let either = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        Refused {
            host: self.host + other.host,
            metadata: self.metadata + other.metadata,
            networks: self.networks + other.networks,
            egress: self.egress + other.egress,
            routers: self.routers + other.routers,
            guard: either(self.guard, other.guard),
            malformed: either(self.malformed, other.malformed),
        }
    }

    fn count(&mut self, rule: &Rule) {
        let counters = rule.expr.iter().filter_map(|it| it.counter["packets"].as_u64());
        let packets = counters.sum::<u64>();
        match rule.comment.as_deref() {
            Some("host") => self.host += packets,
            Some("metadata") => self.metadata += packets,
            Some("networks") => self.networks += packets,
            Some("egress") => self.egress += packets,
            Some("routers") => self.routers += packets,
            _ => {}
        }
    }
}

/// What was refused to each container that has rules.
#[derive(Debug, Default)]
pub(in crate::networks) struct ByChain(HashMap<String, Refused>);

impl ByChain {
    /// Of the container `id`; nothing, if it has no rules.
    pub(in crate::networks) fn of(&self, id: &str) -> Option<Refused> {
        self.0.get(&chain(id)).cloned()
    }

    /// Takes in what nft printed.
    fn take(&mut self, json: &[u8]) -> serde_json::Result<()> {
        for listing in serde_json::Deserializer::from_slice(json).into_iter::<Listing>() {
            for item in listing?.nftables {
                match (item.rule, item.chain) {
                    (Some(rule), _) => self.entry(&rule.chain).count(&rule),
                    (None, Some(chain)) => drop(self.entry(&chain.name)),
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }

    /// A container's chains are `c-ID`, and `c-ID-N` of its interfaces.
    fn entry(&mut self, chain: &str) -> &mut Refused {
        let mut parts = chain.splitn(3, '-');
        let owner = match (parts.next(), parts.next()) {
            (Some(kind), Some(id)) => format!("{kind}-{id}"),
            _ => chain.to_owned(),
        };
        self.0.entry(owner).or_default()
    }
}

/// What nft's `-j` prints, as far as it matters (libnftables-json(5)).
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    rule: Option<Rule>,
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    name: String,
}

#[derive(Deserialize)]
struct Rule {
    chain: String,
    comment: Option<String>,
    #[serde(default)]
    expr: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    #[serde(default)]
    counter: Value,
}

/// What was refused to all containers.
///
/// # Errors
/// When nft fails, as it does where a firewall's reload has removed our tables.
pub(in crate::networks) fn refused_to_all() -> Result<ByChain, NetworkError> {
    let (mut all, log) = (ByChain::default(), anonymous_file()?);
    // Not both by one run: nft (1.0.6) reads from the kernel what one of the commands needs.
    for family in ["inet", "netdev"] {
        let table = ["-j", "list", "table", family, "bulkhead"];
        let json = nft_up_to(MAX_LISTING, &table, "", &log).map_err(|error| match error {
            NetworkError::Rules(words) => NetworkError::Listing(words),
            other => other,
        })?;
        let strange = |error| NetworkError::Listing(format!("it makes no sense ({error})"));
        all.take(&json).map_err(strange)?;
    }
    Ok(all)
}

/// What was refused to the container `id`, which has up to `ends` interfaces; nothing, if it
/// has no rules, or they cannot be read.
pub(in crate::networks) fn refused(id: &str, ends: usize) -> Option<Refused> {
    let chain = chain(id);
    let log = anonymous_file().ok()?;
    let mut found = ByChain::default();
    // Not whole tables, which grow with the number of containers.
    let mut look = |family, chain: &str| {
        let json = nft(&["-j", "list", "chain", family, "bulkhead", chain], "", &log);
        json.is_ok_and(|json| found.take(&json).is_ok())
    };
    look("inet", &chain);
    // They are numbered without gaps.
    let _ = (0..ends).all(|index| look("netdev", &format!("{chain}-{index}")));
    found.of(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, comment: &str, packets: u64) -> Value {
        serde_json::json!({ "rule": { "family": "inet", "chain": chain, "comment": comment,
            "expr": [{ "match": {} }, { "counter": { "packets": packets, "bytes": 1 } },
            { "drop": null }] } })
    }

    fn listing(items: &[Value]) -> String {
        serde_json::json!({ "nftables": items }).to_string()
    }

    #[test]
    fn counters_are_found_by_chain_and_comment() {
        let id = |digit: &str| digit.repeat(64);
        let (one, two) = (chain(&id("1")), chain(&id("2")));
        let inet = listing(&[
            serde_json::json!({ "metainfo": { "version": "1.0.6" } }),
            serde_json::json!({ "chain": { "name": "guests", "type": "filter" } }),
            serde_json::json!({ "chain": { "name": one } }),
            serde_json::json!({ "chain": { "name": two } }),
            serde_json::json!({ "map": { "name": "from4", "elem": [["10.0.0.1", {}]] } }),
            rule(&one, "host", 2),
            rule(&one, "host", 3),
            rule(&one, "egress", 4),
            serde_json::json!({ "rule": { "chain": one, "expr": [{ "counter": null }] } }),
            serde_json::json!({ "rule": { "chain": "enter", "expr": [{ "counter": "named" }] } }),
        ]);
        let netdev = listing(&[
            rule(&format!("{one}-0"), "routers", 5),
            rule(&format!("{one}-1"), "host", 6),
        ]);
        let mut all = ByChain::default();
        all.take(format!("{inet}\n").as_bytes()).unwrap();
        all.take(netdev.as_bytes()).unwrap();
        let of_one = Refused { host: 11, egress: 4, routers: 5, ..Refused::default() };
        assert_eq!(all.of(&id("1")), Some(of_one));
        assert_eq!(all.of(&id("2")), Some(Refused::default()), "it has refused nothing");
        assert_eq!(all.of(&id("3")), None, "it has no rules");
        assert!(ByChain::default().take(b"").is_ok(), "nothing is nothing");
        for bad in [&b"Error"[..], b"{}", br#"{"nftables":[{"rule":{}}]}"#] {
            assert!(ByChain::default().take(bad).is_err());
        }
    }
}
