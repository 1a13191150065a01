use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::pages::MAX_PFNS;
use super::*;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{
    BUFFERS, Bench, HIGH, REGION, WRITE, hostile_balloon, memory,
};

type Calls = Arc<Mutex<Vec<(u64, u64)>>>;

fn bench() -> (Bench, BalloonHandle, Calls, Balloon) {
    let (memory, calls) = (memory(), Calls::default());
    let inner = calls.clone();
    let reclaim = move |gpa, len| {
        inner.lock().unwrap().push((gpa, len));
        Ok(())
    };
    let (mut device, handle) = Balloon::new(&memory, Arc::new(reclaim));
    let bench = Bench::new(&mut device, memory, &[0, 1, 2]);
    (bench, handle, calls, device)
}

fn pfns(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers.into_iter().flat_map(u32::to_le_bytes).collect()
}

#[test]
fn inflated_pages_are_merged_and_checked() {
    let (mut bench, handle, calls, _) = bench();
    let end = (REGION / 4096) as u32;
    let list = pfns([0x82, 0x80, 0x81, 0x90, 0x81, end - 1, end, u32::MAX, (HIGH >> 12) as u32]);
    bench.put(BUFFERS, &list);
    bench.rings[0].chain(&[(BUFFERS, list.len() as u32, 0)]);
    bench.kick(0).unwrap();
    let expected = [(0x80000, 0x3000), (0x90000, 0x1000), (REGION - 4096, 0x1000), (HIGH, 0x1000)];
    assert_eq!(*calls.lock().unwrap(), expected);
    assert_eq!(bench.rings[0].used(0), [0]);
    assert_eq!(handle.reported_bytes(), 0);
}

#[test]
fn a_list_is_bounded() {
    let (mut bench, _, calls, _) = bench();
    bench.rings[0].chain(&[(HIGH, REGION as u32, 0), (HIGH, u32::MAX, 0)]);
    bench.rings[0].chain(&[(BUFFERS, MAX_PFNS as u32 * 8, 0)]);
    bench.kick(0).unwrap();
    assert_eq!(*calls.lock().unwrap(), [(0, 4096), (0, 4096)], "page 0, twice");
}

#[test]
fn deflating_is_only_acknowledged() {
    let (mut bench, _, calls, _) = bench();
    bench.rings[1].chain(&[(BUFFERS, 4, 0)]);
    bench.kick(1).unwrap();
    assert_eq!(bench.rings[1].used(0), [0]);
    assert!(calls.lock().unwrap().is_empty());
}

#[test]
fn reported_ranges_are_trimmed_and_checked() {
    let (mut bench, handle, calls, _) = bench();
    bench.rings[2].chain(&[
        (0x80000, 0x4000, WRITE),
        (0x90001, 0x2000, WRITE),
        (0xa0001, 0xffe, WRITE),
        (REGION - 4096, 0x2000, WRITE),
        (u64::MAX - 4096, 0x2000, WRITE),
    ]);
    bench.kick(2).unwrap();
    assert_eq!(*calls.lock().unwrap(), [(0x80000, 0x4000), (0x91000, 0x1000)]);
    assert_eq!(handle.reported_bytes(), 0x5000);
}

#[test]
fn the_configuration_is_the_handles_and_the_drivers() {
    let (_, handle, _, mut device) = bench();
    handle.set_target_mib(1);
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.write_config(4, &512u32.to_le_bytes());
    device.write_config(0, &7u32.to_le_bytes());
    assert_eq!(handle.actual_mib(), 2);
    handle.set_target_mib(u32::MAX);
    device.read_config(0, &mut config);
    assert_eq!(config[..4], 512u32.to_le_bytes(), "no more than there is");
    device.reset();
    assert_eq!(handle.actual_mib(), 0);
}

#[test]
fn state_round_trips() {
    let (_, handle, _, mut device) = bench();
    handle.set_target_mib(2);
    device.write_config(4, &300u32.to_le_bytes());
    handle.add_reported(4096);
    let (mut other, other_handle) = Balloon::new(&memory(), Arc::new(|_, _| Ok(())));
    other.restore(&device.save()).unwrap();
    assert_eq!(other.save(), device.save());
    assert_eq!((other_handle.actual_mib(), other_handle.reported_bytes()), (1, 4096));
    assert!(other.restore(&[1]).is_err());
}

#[test]
fn memory_is_really_given_back() {
    let memory = memory();
    let reclaim = MmapReclaim::new(memory.clone().into(), Backing::Private);
    memory.write_slice(&[7; 8192], GuestAddress(0x80000)).unwrap();
    reclaim.reclaim(0x80000, 4096).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x80000)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x81000)).unwrap(), 7);
    assert!(reclaim.reclaim(REGION, 4096).is_err());
    assert!(reclaim.reclaim(1, 4096).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 8..600)) {
        hostile_balloon(&data);
    }
}
