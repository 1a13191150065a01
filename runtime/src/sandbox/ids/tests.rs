use proptest::prelude::*;

use super::super::uids::{FIRST, RANGE};
use super::*;

fn mapping(container: u32, host: u32, size: u32) -> Mapping {
    Mapping { container, host, size }
}

fn lines(map: &Map) -> String {
    map.lines().unwrap()
}

#[test]
fn a_machine_without_more_has_the_low_ids() {
    let high = High::of([(0, 65_536), (7, 1)]).unwrap();
    assert_eq!(high, High::default());
    assert_eq!(lines(&high.map(FIRST)), format!("0 {FIRST} 65536\n"));
}

#[test]
fn high_ranges_are_merged_and_counted() {
    let high = High::of([(100_000, 10), (65_530, 10), (100_005, 10), (100_015, 1)]).unwrap();
    assert_eq!(high.0, [(65_536, 4), (100_000, 16)]);
    let error = High::of([(100_000, 65_536), (1_000_000, 1)]).unwrap_err();
    assert_eq!(error, IdsError::TooMany { wanted: 65_537 });
    assert!(error.to_string().contains("above 65535, not 65537"), "{error}");
    assert!(High::of([(u32::MAX, u32::MAX)]).is_err());
}

#[test]
fn a_container_knows_its_own_and_nobody_else() {
    let high = High::of([(100_000, 65_536)]).unwrap();
    let machine = high.map(FIRST);
    let map = machine.of_user(&[mapping(0, 100_000, 65_536)]);
    assert_eq!(
        lines(&map),
        format!("100000 {} 65536\n0 {NOBODYS} 65536\n", FIRST + LOW),
        "the low ids are nobody's"
    );
    // As podman's keep-id does it: three ranges, one of them low.
    let kept = [mapping(0, 100_000, 1000), mapping(1000, 1000, 1), mapping(1001, 101_000, 500)];
    let map = High::of([(100_000, 1500)]).unwrap().map(FIRST).of_user(&kept);
    assert_eq!(map.get(1000), Some(FIRST + 1000));
    assert_eq!(map.get(999), Some(NOBODYS + 999));
    assert_eq!(map.get(101_000), Some(FIRST + LOW + 1000));
    assert_eq!(map.get(200_000), None);
}

#[test]
fn a_mount_maps_only_what_it_names() {
    let machine = High::of([(100_000, 65_536)]).unwrap().map(FIRST);
    let map = machine.of_mount(&[mapping(0, 100_000, 1000), mapping(1000, 65_000, 600)]);
    let expected = format!("0 {} 1000\n1000 {} 536\n", FIRST + LOW, FIRST + 65_000);
    assert_eq!(lines(&map), expected, "a machine without 65536 cannot show it");
}

#[test]
fn what_the_kernel_would_not_take_is_told() {
    let many: Vec<_> = (0..300).map(|n| (100_000 + 2 * n, 1)).collect();
    let error = High::of(many).unwrap().map(FIRST).lines().unwrap_err();
    assert_eq!(error, IdsError::TooLong(301));
}

/// Mappings that overlap on neither side, up to 65536 ids in all.
fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let gaps = prop::collection::vec((0..200_000u32, 0..70_000u32, 1..8000u32), 1..8);
    gaps.prop_map(|gaps| {
        let (mut container, mut host) = (0, 0);
        let next = |(host_gap, container_gap, size): (u32, u32, u32)| {
            container += container_gap;
            host += host_gap;
            let mapping = mapping(container, host, size);
            container += size;
            host += size;
            mapping
        };
        gaps.into_iter().map(next).collect()
    })
}

fn machine(mappings: &[Mapping]) -> Map {
    High::of(mappings.iter().map(|m| (m.host, m.size))).unwrap().map(FIRST)
}

/// No id is there twice, on either side.
fn is_one_to_one(map: &Map) -> bool {
    let apart = |mut ranges: Vec<(u32, u32)>| {
        ranges.sort_unstable();
        ranges.windows(2).all(|two| u64::from(two[0].0) + u64::from(two[0].1) <= two[1].0.into())
    };
    apart(map.0.iter().map(|extent| (extent.from, extent.count)).collect())
        && apart(map.0.iter().map(|extent| (extent.to, extent.count)).collect())
}

/// The guest's number for an id of the sandbox's range.
fn in_guest(machine: &Map, id: u32) -> Option<u32> {
    let extent = machine.0.iter().find(|extent| id.wrapping_sub(extent.to) < extent.count)?;
    Some(extent.from + (id - extent.to))
}

proptest! {
    #[test]
    fn an_id_of_the_container_is_itself_in_the_guest(mappings in mappings(), pick: u32) {
        let machine = machine(&mappings);
        let map = machine.of_user(&mappings);
        prop_assert!(is_one_to_one(&machine) && is_one_to_one(&map));
        let one = mappings[pick as usize % mappings.len()];
        let id = one.host + pick % one.size;
        let there = map.get(id).unwrap();
        prop_assert!((FIRST..FIRST + RANGE).contains(&there));
        prop_assert_eq!(in_guest(&machine, there), Some(id));
    }

    #[test]
    fn an_id_of_others_is_none_that_the_machine_could_take(mappings in mappings(), id in 0..400_000u32) {
        let inside = mappings.iter().any(|m| (m.host..m.host + m.size).contains(&id));
        prop_assume!(!inside);
        let machine = machine(&mappings);
        let there = machine.of_user(&mappings).get(id);
        prop_assert_eq!(there.is_some(), id < LOW);
        prop_assert_eq!(there.and_then(|there| in_guest(&machine, there)), None);
    }

    #[test]
    fn an_id_mapped_mount_shows_what_it_says(mappings in mappings(), id in 0..400_000u32) {
        let machine = machine(&mappings);
        let map = machine.of_mount(&mappings);
        prop_assert!(is_one_to_one(&map));
        let named = mappings.iter().find(|m| (m.container..m.container + m.size).contains(&id));
        let expected = named.map(|m| m.host + (id - m.container));
        prop_assert_eq!(map.get(id).and_then(|there| in_guest(&machine, there)), expected);
    }

    #[test]
    fn a_joining_container_is_told_apart(mappings in mappings(), pick: usize, more: bool) {
        let all = High::of(mappings.iter().map(|m| (m.host, m.size))).unwrap();
        let one = mappings[pick % mappings.len()];
        prop_assert!(all.contains(&High::of([(one.host, one.size)]).unwrap()));
        let beyond = all.0.last().map_or(LOW, |last| last.0 + last.1) + u32::from(more);
        prop_assert!(!all.contains(&High::of([(beyond, 1)]).unwrap()));
    }
}

#[test]
fn a_line_lies_in_one_range_of_the_writers() {
    let map = High::default().map(0);
    assert_eq!(map.lines().unwrap(), "0 0 65536\n");
    let users = map.split(&[(0, 1), (1, 60_000), (60_001, 9_000)]);
    assert_eq!(users.lines().unwrap(), "0 0 1\n1 1 60000\n60001 60001 5535\n");
    assert_eq!(map.split(&[(0, u32::MAX)]), map);
}
