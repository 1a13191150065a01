//! The text that nft is given, and what it gives back.

use super::judge::{HABITS, bridged, routed};
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
        macs: vec!["02:00:00:00:00:01".into()],
        ours: true,
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
    assert!(
        at(&rules, "fib daddr type != unicast counter drop")
            < at(&rules, "ip daddr 10.87.0.0/24 accept")
    );
    assert!(at(&rules, "10.87.0.0/24 accept") < at(&rules, "@networks4"));
    assert!(rules.iter().all(|rule| !rule.contains("\"egress\"")));
    let open = routed(&Guest { allow_host: true, ..guest(&subnets, None) });
    let whole = |words: &str| open.iter().position(|rule| rule == words).unwrap();
    // Not even then what the host serves itself alone.
    assert!(at(&open, "127.0.0.0/8 counter drop") < whole("fib daddr type != unicast accept"));
    assert!(open.iter().all(|rule| !rule.contains("metadata")));
    let internal = routed(&Guest { internal: true, ..guest(&subnets, None) });
    assert_eq!(internal.last().unwrap(), "counter drop comment \"egress\"");
    assert!(bridged(&guest(&subnets, None)).iter().all(|rule| rule.contains("counter drop")));
}

#[test]
fn neighbours_are_those_of_the_link() {
    let subnets = subnets();
    let rules = routed(&guest(&subnets, None));
    let of_neighbours = |rule: &&String| rule.contains("nd-neighbor");
    let all: Vec<&String> = rules.iter().filter(of_neighbours).collect();
    assert_eq!(all.len(), 2);
    assert!(all[0].ends_with("} fib daddr type != unicast accept"), "{}", all[0]);
    assert!(all[1].ends_with("} ip6 daddr { fe80::/10, fd01::/64 } accept"), "{}", all[1]);
    assert!(!COMMON.contains("icmpv6"), "nothing passes by a container's chain");
}

#[test]
fn other_sources_than_its_own_end_at_the_host_s_end() {
    let subnets = subnets();
    let mut one = guest(&subnets, None);
    let rules = bridged(&one);
    for (index, rule) in [
        "ip6 saddr :: meta l4proto != ipv6-icmp",
        "ip saddr != { 10.87.0.2 }",
        "ip6 saddr != { ::, fd01::2 }",
        "icmpv6 type nd-neighbor-advert @th,64,128 != { 0xfd010000000000000000000000000002 }",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(rules[index], format!("{rule} counter drop comment \"host\""));
    }
    one.addresses.clear();
    let rules = bridged(&one);
    assert_eq!(rules[1], "meta protocol ip counter drop comment \"host\"");
    assert_eq!(rules[2], "ip6 saddr != { :: } counter drop comment \"host\"");
    assert_eq!(rules[3], "icmpv6 type nd-neighbor-advert counter drop comment \"host\"");
}

#[test]
fn a_wide_entry_opens_no_other_network() {
    let subnets = subnets();
    let all = Allowed { to: "0.0.0.0/0".parse().unwrap(), port: None };
    let policy = Policy { public: false, allowed: vec![all] };
    let guest = guest(&subnets, Some(policy));
    let rules = routed(&guest);
    assert!(at(&rules, "ip daddr 10.87.0.0/24 accept") < at(&rules, "@networks4"));
    assert!(at(&rules, "@networks4") < at(&rules, "ip daddr 0.0.0.0/0 accept"));
    let rules = bridged(&guest);
    at(&rules, "ip daddr 10.87.0.0/24 accept");
    assert!(rules.iter().all(|rule| !rule.contains("0.0.0.0/0")));
}

#[test]
fn name_servers_of_clouds_are_open_for_names() {
    let subnets = subnets();
    let servers = ["169.254.169.254", "168.63.129.16", "fd20:ce::254", "9.9.9.9"];
    let servers = || servers.iter().map(|server| server.parse().unwrap()).collect();
    let with = |policy| Guest { name_servers: servers(), ..guest(&subnets, policy) };
    let rules = routed(&with(None));
    for server in ["169.254.169.254/32", "168.63.129.16/32", "fd20:ce::254/128"] {
        let words = format!("daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept");
        assert!(at(&rules, &words) < at(&rules, "\"metadata\""));
        assert!(at(&rules, "\"host\"") < at(&rules, &words));
    }
    assert!(rules.iter().all(|rule| !rule.contains("9.9.9.9")), "what is open anyway");
    let closed = with(Some(Policy::default()));
    let internal = Guest { internal: true, ..with(None) };
    for rules in [routed(&closed), routed(&internal)] {
        assert!(rules.iter().all(|rule| !rule.contains("dport 53")));
    }
    for range in ["169.254.0.0/16", "168.63.129.16/32", "192.0.0.192/32"] {
        assert!(rules.iter().any(|rule| rule.contains(range) && rule.contains("\"metadata\"")));
    }
}

#[test]
fn only_networks_of_ours_are_translated() {
    let subnets = subnets();
    let ours = guest(&subnets, None);
    let words = "element inet bulkhead translated4 { 10.87.0.0/24 }";
    assert!(text(&ours).contains(words));
    let hosts = text(&Guest { ours: false, ..ours });
    assert!(!hosts.contains("element inet bulkhead translated"), "{hosts}");
    assert!(!hosts.contains("element inet bulkhead networks"), "{hosts}");
}

/// In the way of what comes from elsewhere, and of nobody else.
#[test]
fn networks_are_entered_by_published_ports() {
    let rules: Vec<String> = COMMON
        .lines()
        .filter_map(|line| line.strip_prefix("add rule inet bulkhead enter "))
        .map(str::to_owned)
        .collect();
    for accepted in [
        "established,related",
        "status dnat",
        "ip saddr @networks4 fib saddr . iif oif exists",
        "fe80::/10",
    ] {
        assert!(at(&rules, accepted) < at(&rules, "ip daddr @networks4 counter drop"));
    }
    assert_eq!(at(&rules, "ip6 daddr @networks6 counter drop"), rules.len() - 1);
    assert!(COMMON.contains("guests ct state established,related ct direction reply accept"));
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
    };
    let name_servers = vec!["192.168.0.1".parse().unwrap()];
    let guest = Guest { name_servers, ..guest(&subnets, Some(policy)) };
    for rules in [routed(&guest), bridged(&guest)] {
        assert_eq!(rules.last().unwrap(), "counter drop comment \"egress\"");
        at(&rules, "ip daddr 10.87.0.0/24 tcp dport 5432 accept");
    }
    at(&routed(&guest), "ip daddr 10.0.0.0/8 tcp dport 5432 accept");
    at(&routed(&guest), "192.168.0.1/32 meta l4proto { tcp, udp } th dport 53 accept");
    assert!(bridged(&guest).iter().all(|rule| !rule.contains("192.168.1.0/24")));
    // The host comes first, whatever a policy says.
    assert_eq!(at(&routed(&guest), "\"host\""), HABITS.len() + 2);
}

#[test]
fn link_local_addresses() {
    let own: IpAddr = "fe80::ff:fe00:1".parse().unwrap();
    assert_eq!(link_local([2, 0, 0, 0, 0, 1]), own);
}
