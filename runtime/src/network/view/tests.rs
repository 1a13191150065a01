use super::*;

fn message(header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = header.to_vec();
    attributes.iter().for_each(|(kind, value)| push(&mut message, *kind, value));
    message
}

/// An interface with the number 7.
fn link(kind: u16, more: &[(u16, &[u8])]) -> Option<Listed> {
    let mut header = [0; LINK];
    header[2..4].copy_from_slice(&kind.to_ne_bytes());
    header[4] = 7;
    let own: [(u16, &[u8]); 3] = [
        (libc::IFLA_IFNAME, b"eth0\0"),
        (libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7]),
        (libc::IFLA_MTU, &[0xdc, 5, 0, 0]),
    ];
    listed(&message(&header, &[&own[..], more].concat()))
}

#[test]
fn only_ethernet_that_is_not_ours_is_taken() {
    let plain = link(libc::ARPHRD_ETHER, &[]).unwrap();
    assert_eq!((plain.interface.mtu, plain.port, plain.below), (1500, false, None));
    assert_eq!(link(libc::ARPHRD_LOOPBACK, &[]), None);
    let nine = 9u32.to_ne_bytes();
    assert!(link(libc::ARPHRD_ETHER, &[(libc::IFLA_MASTER, &nine)]).unwrap().port);
    let upon = |more: &[(u16, &[u8])]| {
        let all = [&[(libc::IFLA_LINK, &nine[..])], more].concat();
        link(libc::ARPHRD_ETHER, &all).unwrap().below
    };
    assert_eq!(upon(&[]), Some(9));
    assert_eq!(upon(&[(libc::IFLA_LINK_NETNSID, &[0; 4])]), None, "of another namespace");
    let veth = message(&[], &[(libc::IFLA_INFO_KIND, b"veth\0")]);
    assert_eq!(upon(&[(libc::IFLA_LINKINFO, &veth)]), None, "its other end");
    let mut ours = message(&[0; LINK], &[(libc::IFLA_IFNAME, b"bhtap7\0")]);
    ours[2] = 1;
    assert_eq!(listed(&ours), None);
}

#[test]
fn what_is_the_kernels_own_affair_is_left_out() {
    let of = |flags: u32, cache: u8| {
        let flags = flags.to_ne_bytes();
        let header = [2, 24, 0x80, 0, 7, 0, 0, 0];
        let all: [(u16, &[u8]); 3] = [
            (libc::IFA_LOCAL, &[10, 0, 0, 2]),
            (libc::IFA_CACHEINFO, &[cache; 16]),
            (libc::IFA_FLAGS, &flags),
        ];
        address(&message(&header, &all))
    };
    let plain = of(libc::IFA_F_PERMANENT, 1).unwrap();
    assert_eq!(plain, of(libc::IFA_F_PERMANENT | libc::IFA_F_TENTATIVE, 2).unwrap());
    assert_eq!((plain.0, ip_of(&plain.1)), (7, Some([10, 0, 0, 2].into())));
    assert_ne!(plain, of(libc::IFA_F_NOPREFIXROUTE, 1).unwrap());
    assert_eq!(of(libc::IFA_F_DADFAILED, 1), None);
}

fn main_route(kind: u8, attributes: &[(u16, &[u8])]) -> Option<(bool, Item)> {
    let header = [2, 0, 0, 0, 254, 3, 0, kind, 0x10, 0, 0, 0];
    route(&message(&header, attributes), &HashSet::from([7]))
}

#[test]
fn routes_by_interfaces_of_others_are_left_out() {
    let (out, lo) = (7u32.to_ne_bytes(), 1u32.to_ne_bytes());
    let gateway: (u16, &[u8]) = (libc::RTA_GATEWAY, &[10, 0, 0, 1]);
    let by = |index: &[u8]| main_route(libc::RTN_UNICAST, &[gateway, (libc::RTA_OIF, index)]);
    let (by_gateway, item) = by(&out).unwrap();
    assert!(by_gateway && item.0[8] == 0, "its state is not told");
    assert_eq!(by(&lo), None);
    assert!(!main_route(libc::RTN_UNICAST, &[(libc::RTA_OIF, &out)]).unwrap().0);
    // One that leads nowhere has the loopback interface in IPv6.
    let (_, item) = main_route(libc::RTN_BLACKHOLE, &[(libc::RTA_OIF, &lo)]).unwrap();
    assert_eq!(attribute(&item.0[ROUTE..], libc::RTA_OIF), None);
    assert_eq!(main_route(libc::RTN_LOCAL, &[(libc::RTA_OIF, &out)]), None);
    let table = u32::from(libc::RT_TABLE_LOCAL).to_ne_bytes();
    assert_eq!(main_route(1, &[(libc::RTA_OIF, &out), (libc::RTA_TABLE, &table)]), None);
}

#[test]
fn hops_are_bounded_and_all_ours() {
    let hop = |index: u8| [8, 0, 0x11, 0, index, 0, 0, 0];
    let several = |hops: &[u8]| main_route(libc::RTN_UNICAST, &[(libc::RTA_MULTIPATH, hops)]);
    let (_, item) = several(&[hop(7), hop(7)].concat()).unwrap();
    let hops = attribute(&item.0[ROUTE..], libc::RTA_MULTIPATH).unwrap();
    assert_eq!((hops.len(), hops[2]), (16, 0));
    assert_eq!(several(&[hop(7), hop(8)].concat()), None);
    assert_eq!(several(&[7, 0, 0, 0, 7, 0, 0, 0]), None, "shorter than its header");
    assert_eq!(several(&[64, 0, 0, 0, 7, 0, 0, 0]), None, "longer than the list");
}

proptest::proptest! {
    #[test]
    fn nonsense_is_no_reason_to_panic(bytes in proptest::collection::vec(0u8.., 0..80)) {
        let ours = HashSet::from([7]);
        let _ = (listed(&bytes), address(&bytes), route(&bytes, &ours), neighbour(&bytes, &ours));
    }
}
