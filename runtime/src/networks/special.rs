//! Addresses that mean something of their own.

use std::net::IpAddr;

use super::cidr::Cidr;

/// Addresses by which clouds tell a machine who it is: the common ones, and those of
/// Alibaba, Azure and Oracle.
pub(super) const METADATA4: [&str; 4] =
    ["169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"];
/// Those of Amazon, Google and Scaleway.
pub(super) const METADATA6: [&str; 3] =
    ["fd00:ec2::254/128", "fd20:ce::254/128", "fd00:42::42/128"];
/// What is not on the Internet: the IANA's registries of special-purpose addresses.
pub(super) const NOT_PUBLIC4: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];
pub(super) const PUBLIC6: &str = "2000::/3";
pub(super) const NOT_PUBLIC6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

/// Whether one of the ranges has it.
pub(super) fn in_one_of(ranges: &[&str], address: IpAddr) -> bool {
    ranges.iter().filter_map(|range| range.parse::<Cidr>().ok()).any(|it| it.contains(address))
}

/// Whether a metadata service may have it.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    in_one_of(&METADATA4, address) || in_one_of(&METADATA6, address)
}

/// Whether it is on the Internet.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => !in_one_of(&NOT_PUBLIC4, address),
        IpAddr::V6(_) => in_one_of(&[PUBLIC6], address) && !in_one_of(&NOT_PUBLIC6, address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_they_are() {
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(is_metadata(of("169.254.169.254")) && is_metadata(of("fd00:ec2::254")));
        assert!(!is_metadata(of("1.1.1.1")) && !is_metadata(of("fd00:ec2::255")));
        for public in ["1.1.1.1", "223.255.255.255", "2606:4700::1"] {
            assert!(is_public(of(public)), "{public}");
        }
        for other in ["10.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "fd00::1", "2001:db8::1"] {
            assert!(!is_public(of(other)), "{other}");
        }
        let all = METADATA4.iter().chain(&METADATA6).chain(&NOT_PUBLIC4).chain(&NOT_PUBLIC6);
        assert!(all.chain(&[PUBLIC6]).all(|range| range.parse::<Cidr>().is_ok()));
    }
}
