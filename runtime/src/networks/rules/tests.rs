//! The text that nft is given, and what it gives back.

use super::*;
use crate::networks::options::Protocol;

fn subnets() -> Vec<Cidr> {
    vec!["10.87.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()]
}

fn guest<'a>(subnets: &'a [Cidr], policy: Option<Policy>) -> Guest<'a> {
    Guest {
        id: "0123456789abcdef",
        addresses: vec!["10.87.0.2".parse().unwrap(), "fd01::2".parse().unwrap()],
        subnets,
        policy,
        ends: vec!["veth1".into()],
        bridges: vec!["02:00:00:00:00:01".into()],
        ..Guest::default()
    }
}

fn at(rules: &[String], words: &str) -> usize {
    rules
        .iter()
        .position(|rule| rule.contains(words))
        .unwrap_or_else(|| panic!("{words}: {rules:?}"))
}

#[test]
fn the_host_is_closed_and_neighbours_are_open() {
    let subnets = subnets();
    let rules = routed(&guest(&subnets, None));
    assert!(at(&rules, "fib daddr type") < at(&rules, "ip daddr 10.87.0.0/24 accept"));
    assert!(at(&rules, "10.87.0.0/24 accept") < at(&rules, "@networks4"));
    assert!(rules.iter().all(|rule| !rule.contains("\"egress\"")));
    let open = routed(&Guest { allow_host: true, ..guest(&subnets, None) });
    assert_eq!(at(&open, "fib daddr type != unicast accept"), HABITS.len());
    assert!(open.iter().all(|rule| !rule.contains("metadata")));
    let internal = routed(&Guest { internal: true, ..guest(&subnets, None) });
    assert_eq!(internal.last().unwrap(), "counter drop comment \"egress\"");
    assert_eq!(bridged(&guest(&subnets, None)).len(), 1);
}

#[test]
fn a_policy_ends_with_a_refusal() {
    let subnets = subnets();
    let allow = |to: &str, port| Allowed { to: to.parse().unwrap(), port };
    let policy = Policy {
        public: true,
        allowed: vec![
            allow("10.0.0.0/8", Some((5432, Protocol::Tcp))),
            allow("192.168.1.0/24", None),
        ],
        name_servers: vec!["192.168.0.1".parse().unwrap()],
    };
    let guest = guest(&subnets, Some(policy));
    for rules in [routed(&guest), bridged(&guest)] {
        assert_eq!(rules.last().unwrap(), "counter drop comment \"egress\"");
        at(&rules, "ip daddr 10.0.0.0/8 tcp dport 5432 accept");
    }
    at(&routed(&guest), "192.168.0.1/32 meta l4proto { tcp, udp } th dport 53 accept");
    assert!(bridged(&guest).iter().all(|rule| !rule.contains("192.168.1.0/24")));
    // The host comes first, whatever a policy says.
    assert_eq!(at(&routed(&guest), "\"host\""), HABITS.len());
}

#[test]
fn counters_are_found_by_their_comments() {
    let rule = |chain: &str, comment: &str, packets: u64| {
        serde_json::json!({ "rule": { "chain": chain, "comment": comment,
            "expr": [{ "match": {} }, { "counter": { "packets": packets, "bytes": 1 } }] } })
    };
    let json = serde_json::json!({ "nftables": [{ "metainfo": {} }, rule("c-1", "host", 2),
        rule("c-1", "host", 3), rule("c-1-0", "egress", 4), rule("c-12", "host", 9)] });
    let mut refused = Refused::default();
    count(json.to_string().as_bytes(), "c-1", &mut refused);
    assert_eq!(refused, Refused { host: 5, egress: 4, ..Refused::default() });
}

#[test]
fn link_local_addresses() {
    assert_eq!(link_local("02:00:00:00:00:01"), Some("fe80::ff:fe00:1".parse().unwrap()));
    assert_eq!(link_local("02:00"), None);
}
