use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{
    BUFFERS, HIGH, PciDriver, TABLE as MESSAGES, WRITE, function, hostile_function, memory, settle,
};

#[test]
fn a_driver_finds_everything_by_the_capabilities() {
    let (function, _) = function(Rng, &memory());
    let driver = PciDriver(&function);
    assert_eq!((driver.config(0), driver.config(8)), (0x1044_1af4, 0xff00_0001));
    let mut at = driver.config(0x34) as usize & 0xff;
    let head = driver.config(at) & !0xff00;
    assert_eq!([head, driver.config(at + 4), driver.config(at + 8)], [0x0001_0011, 0x1001, 0x3001]);
    let mut virtio = Vec::new();
    loop {
        at = driver.config(at).to_le_bytes()[1].into();
        if at == 0 {
            break;
        }
        let [id, _, len, kind] = driver.config(at).to_le_bytes();
        assert_eq!(id, VENDOR_SPECIFIC);
        virtio.push((len, kind, [4, 8, 12].map(|field| driver.config(at + field))));
    }
    assert_eq!(
        virtio,
        [
            (16, abi::VIRTIO_PCI_CAP_COMMON_CFG, [1, 0, 56]),
            (16, abi::VIRTIO_PCI_CAP_ISR_CFG, [1, 0x100, 1]),
            (16, abi::VIRTIO_PCI_CAP_DEVICE_CFG, [1, 0x200, 0xe00]),
            (20, abi::VIRTIO_PCI_CAP_NOTIFY_CFG, [0, 0, 4]),
            (20, abi::VIRTIO_PCI_CAP_PCI_CFG, [0, 0, 0]),
        ]
    );
}

#[test]
fn a_driver_gets_its_buffers_and_a_message() {
    let memory = memory();
    let (function, board) = function(Rng, &memory);
    let driver = PciDriver(&function);
    driver.enable();
    let mut rings = driver.start(&memory, &[0]);
    assert_eq!((driver.status(), driver.read(0x12, 2), driver.read(0x1c, 2)), (15, 1, 1));
    let addresses = [0x20, 0x28, 0x30].map(|at| driver.read(at, 8));
    assert_eq!(addresses, [rings[0].base, rings[0].avail(), rings[0].used_ring()]);
    // With event indices: of each that follows, the driver wants to hear.
    let event = GuestAddress(rings[0].avail() + 4 + 2 * u64::from(rings[0].size));
    for count in 1..=3 {
        memory.write_obj(count - 1, event).unwrap();
        rings[0].chain(&[(BUFFERS, 32, WRITE)]);
        driver.kick(0);
        rings[0].wait(count);
        settle();
        assert_eq!(board.taken(), [0]);
    }
    // Masked, it waits.
    memory.write_obj(3u16, event).unwrap();
    driver.write(MESSAGES + 12, 4, 1);
    rings[0].chain(&[(BUFFERS, 32, WRITE)]);
    driver.kick(0);
    rings[0].wait(4);
    settle();
    assert_eq!((board.taken(), driver.read(0x3000, 8)), (vec![], 1));
    driver.write(MESSAGES + 12, 4, 0);
    assert_eq!((board.taken(), driver.read(0x3000, 8)), (vec![0], 0));
    // ISR status is read once.
    assert_eq!([driver.read(0x100, 1), driver.read(0x100, 1)], [1, 0]);
    // A reset takes the vectors back.
    driver.write(0x14, 1, 0);
    assert_eq!([0x10, 0x1a].map(|at| driver.read(at, 2)), [0xffff; 2]);
    assert_eq!((driver.status(), driver.read(0x1c, 2), driver.read(0x18, 2)), (0, 0, 64));
    let mut rings = driver.start(&memory, &[0]);
    rings[0].chain(&[(BUFFERS, 16, WRITE)]);
    driver.kick(0);
    assert_eq!(rings[0].wait(1), [16]);
}

#[test]
fn a_configuration_that_changes_is_told() {
    let memory = memory();
    let (device, handle) = Balloon::new(&memory, Arc::new(|_, _| Ok(())));
    let (function, board) = function(device, &memory);
    let driver = PciDriver(&function);
    driver.enable();
    driver.start(&memory, &[0, 1, 4]);
    let generation = driver.read(0x15, 1);
    handle.set_target_mib(1);
    function.device().config_changed();
    let last = driver.read(0x12, 2) as u32;
    assert_eq!((board.taken(), driver.read(0x200, 4)), (vec![last], 256));
    assert_ne!(driver.read(0x15, 1), generation);
    driver.write(0x204, 4, 256);
    assert_eq!(handle.actual_mib(), 1);
}

#[test]
fn notifications_are_where_the_driver_puts_them() {
    let (function, board) = function(Balloon::new(&memory(), Arc::new(|_, _| Ok(()))).0, &memory());
    let driver = PciDriver(&function);
    let bells = || board.doorbells.lock().unwrap().clone();
    let queues = driver.read(0x12, 2) as u16;
    let at = |port| (0..queues).map(|queue| (port, queue)).collect::<Vec<_>>();
    function.write_config(0x10, &0x1000u32.to_le_bytes());
    assert!(bells().is_empty(), "it does not answer yet");
    function.write_config(4, &[1]);
    assert_eq!(bells(), at(0x1000));
    function.write_config(0x10, &[0xff; 4]);
    assert!(bells().is_empty(), "its size is asked for");
    function.write_config(0x10, &0x2004u32.to_le_bytes());
    assert_eq!(bells(), at(0x2004));
    function.write_config(0x12, &[1, 0]);
    assert!(bells().is_empty(), "no port is so high");
    function.write_config(0x12, &[0, 0]);
    assert_eq!(bells(), at(0x2004));
    function.retire();
    assert!(bells().is_empty());
}

#[test]
fn what_two_vcpus_write_at_once_leaves_no_notification_behind() {
    let (function, board) = function(Rng, &memory());
    function.write_config(4, &[1]);
    std::thread::scope(|scope| {
        for vcpu in 1..=2u32 {
            let function = &function;
            scope.spawn(move || {
                for port in 1..100 {
                    function.write_config(0x10, &(vcpu << 12 | port << 2).to_le_bytes());
                }
            });
        }
    });
    assert_eq!(board.doorbells.lock().unwrap().len(), 1);
    // Who moves them all the time has them by exits.
    for port in 1..=MOVES {
        function.write_config(0x10, &(port << 2).to_le_bytes());
    }
    assert!(board.doorbells.lock().unwrap().is_empty());
    function.retire();
}

#[test]
fn a_function_that_is_no_bus_master_sends_nothing() {
    let memory = memory();
    let (function, board) = function(Rng, &memory);
    let driver = PciDriver(&function);
    driver.enable();
    let mut rings = driver.start(&memory, &[0]);
    function.write_config(4, &[3]);
    rings[0].chain(&[(BUFFERS, 32, WRITE)]);
    driver.kick(0);
    rings[0].wait(1);
    settle();
    assert!(board.taken().is_empty());
    function.write_config(4, &[7]);
    assert_eq!(board.taken(), [0]);
}

/// Section 4.1.4.9: for firmware that has no way to the BARs.
#[test]
fn registers_are_reached_by_the_configuration_space_too() {
    let memory = memory();
    let (function, _) = function(Rng, &memory);
    let driver = PciDriver(&function);
    let access = function.access;
    let select = |bar: u8, offset: u32, len: u32| {
        function.write_config(access + 4, &[bar]);
        function.write_config(access + 8, &offset.to_le_bytes());
        function.write_config(access + 12, &len.to_le_bytes());
    };
    select(1, 0x14, 1);
    function.write_config(access + 16, &[1]);
    assert_eq!((driver.status(), driver.config(access + 16) & 0xff), (1, 1));
    select(1, 0x18, 2);
    assert_eq!(driver.config(access + 16) & 0xffff, 64);
    let mut rings = driver.start(&memory, &[0]);
    rings[0].chain(&[(BUFFERS, 16, WRITE)]);
    select(0, 0, 2);
    function.write_config(access + 16, &0u16.to_le_bytes());
    assert_eq!(rings[0].wait(1), [16]);
    for (bar, offset, len) in [(2, 0, 4), (1, 0x4000, 4), (1, 2, 4), (1, u32::MAX, 1), (1, 0, 8)] {
        select(bar, offset, len);
        function.write_config(access + 16, &[0; 4]);
        driver.config(access + 16);
    }
    assert_eq!(driver.status(), 15);
}

#[test]
fn rings_in_a_hole_are_refused() {
    let memory = memory();
    let (function, board) = function(Rng, &memory);
    let driver = PciDriver(&function);
    driver.enable();
    driver.start(&memory, &[]);
    board.taken();
    driver.write(0x14, 1, 0);
    for status in [1, 3] {
        driver.write(0x14, 1, status);
    }
    driver.write(0x08, 4, 1);
    driver.write(0x0c, 4, 1);
    driver.write(0x14, 1, 11);
    driver.write(0x10, 2, 1);
    driver.write(0x20, 8, HIGH / 2);
    driver.write(0x1c, 2, 1);
    driver.write(0x14, 1, 15);
    assert_eq!(
        (driver.status(), board.taken()),
        (15 | 64, vec![1]),
        "DEVICE_NEEDS_RESET, and it is told"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 0..1200)) {
        hostile_function(&data);
    }
}
