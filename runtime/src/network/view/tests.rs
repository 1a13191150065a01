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

fn main_route(kind: u8, attributes: &[(u16, &[u8])]) -> Option<Route> {
    let header = [2, 0, 0, 0, 254, 3, 0, kind, 0x10, 0, 0, 0];
    route(&message(&header, attributes), &HashSet::from([7]))
}

#[test]
fn routes_by_interfaces_of_others_are_left_out() {
    let (out, lo) = (7u32.to_ne_bytes(), 1u32.to_ne_bytes());
    let gateway: (u16, &[u8]) = (libc::RTA_GATEWAY, &[10, 0, 0, 1]);
    let by = |index: &[u8]| main_route(libc::RTN_UNICAST, &[gateway, (libc::RTA_OIF, index)]);
    let Some(Route::Of(item, true)) = by(&out) else { panic!("a route by a gateway") };
    assert_eq!(item.0[8], 0, "its state is not told");
    assert_eq!(by(&lo), None);
    let direct = main_route(libc::RTN_UNICAST, &[(libc::RTA_OIF, &out)]);
    assert!(matches!(direct, Some(Route::Of(_, false))));
    // One that leads nowhere has the loopback interface in IPv6.
    let blackhole = main_route(libc::RTN_BLACKHOLE, &[(libc::RTA_OIF, &lo)]);
    let Some(Route::Of(item, false)) = blackhole else { panic!("a route that leads nowhere") };
    assert_eq!(attribute(&item.0[ROUTE..], libc::RTA_OIF), None);
    assert_eq!(main_route(libc::RTN_LOCAL, &[(libc::RTA_OIF, &out)]), None);
    let table = u32::from(libc::RT_TABLE_LOCAL).to_ne_bytes();
    assert_eq!(main_route(1, &[(libc::RTA_OIF, &out), (libc::RTA_TABLE, &table)]), None);
}

#[test]
fn routes_that_a_guests_kernel_does_not_have_are_counted() {
    let out = 7u32.to_ne_bytes();
    let several =
        main_route(libc::RTN_UNICAST, &[(libc::RTA_MULTIPATH, &[8, 0, 0, 0, 7, 0, 0, 0])]);
    assert_eq!(several, Some(Route::Unknown));
    let tunnel: (u16, &[u8]) = (libc::RTA_ENCAP_TYPE, &[1, 0]);
    let by = |index: &[u8]| main_route(libc::RTN_UNICAST, &[tunnel, (libc::RTA_OIF, index)]);
    assert_eq!((by(&out), by(&[1, 0, 0, 0])), (Some(Route::Unknown), None));
}

#[test]
fn one_that_cannot_be_taken_leaves_the_others() {
    let one = |index: u32, last: u8, below| Listed {
        interface: Interface {
            index,
            name: format!("eth{index}"),
            mac: [2, 0, 0, 0, 0, last],
            mtu: 1500,
            up: true,
            ipv6: None,
        },
        port: false,
        below,
    };
    let listed = [one(2, 2, None), one(3, 2, None), one(4, 4, Some(2)), one(5, 5, None)];
    let (interfaces, refused) = possible(listed.iter(), &listed);
    assert_eq!(interfaces.iter().map(|one| one.index).collect::<Vec<_>>(), [2, 5]);
    assert!(matches!(&refused[..], [NetworkError::SameMac { .. }, NetworkError::Stacked { .. }]));
}

#[test]
fn what_is_not_taken_is_not_told() {
    let interface = |index| Interface {
        index,
        name: format!("eth{index}"),
        mac: [2; 6],
        mtu: 1500,
        up: true,
        ipv6: None,
    };
    let out = |index: u32| {
        let header = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        Item(message(&header, &[(libc::RTA_OIF, &index.to_ne_bytes())]))
    };
    let neighbour = |index: u8| Item(vec![2, 0, 0, 0, index, 0, 0, 0, 0, 0, 0, 0]);
    let nowhere = Item(vec![2, 0, 0, 0, 254, 3, 0, libc::RTN_BLACKHOLE, 0, 0, 0, 0]);
    let view = View {
        interfaces: vec![interface(2), interface(3)],
        addresses: vec![(2, Item(vec![2])), (3, Item(vec![3]))],
        routes: vec![out(2), out(3), nowhere.clone()],
        neighbours: vec![neighbour(2), neighbour(3)],
        ..View::default()
    };
    let left = view.of_these(&HashSet::from([3]));
    assert_eq!(left.interfaces, [interface(3)]);
    assert_eq!(left.addresses, [(3, Item(vec![3]))]);
    assert_eq!(left.routes, [out(3), nowhere]);
    assert_eq!(left.neighbours, [neighbour(3)]);
}

#[test]
fn settings_of_ipv6_are_read() {
    let mut settings = vec![0; 4 * 27];
    for (at, value) in [(DEVCONF_ACCEPT_RA, 2), (DEVCONF_DISABLE_IPV6, 1)] {
        settings[4 * at] = value;
    }
    let of = |settings: &[u8]| {
        let family = message(&[], &[(1, &[0; 8]), (IFLA_INET6_CONF, settings)]);
        let families = message(&[], &[(libc::AF_INET6 as u16, &family)]);
        link(libc::ARPHRD_ETHER, &[(libc::IFLA_AF_SPEC, &families)]).unwrap().interface.ipv6
    };
    assert_eq!(of(&settings), Some(Ipv6 { disable: 1, accept_ra: 2, autoconf: 0 }));
    assert_eq!(of(&settings[4..]), None, "too short");
    assert_eq!(link(libc::ARPHRD_ETHER, &[]).unwrap().interface.ipv6, None);
}

proptest::proptest! {
    #[test]
    fn nonsense_is_no_reason_to_panic(bytes in proptest::collection::vec(0u8.., 0..80)) {
        let ours = HashSet::from([7]);
        let _ = (listed(&bytes), address(&bytes), route(&bytes, &ours), neighbour(&bytes, &ours));
    }
}
