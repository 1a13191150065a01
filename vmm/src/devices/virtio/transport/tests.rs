use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::device::ActivateError;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{
    BUFFERS, Driver, HIGH, REGION, Ring, WRITE, hostile_registers, memory, transport, transport_at,
    wiring,
};

const STATUS: u64 = 0x70;

fn entropy(transport: &Transport, ring: &mut Ring, total: u16) {
    ring.chain(&[(BUFFERS, 16, WRITE)]);
    Driver(transport).write(QUEUE_NOTIFY, 0);
    assert_eq!(ring.wait(total).len(), usize::from(total));
}

#[test]
fn identity() {
    let transport = transport(Rng, &memory());
    let driver = Driver(&transport);
    assert_eq!(driver.read(0), 0x7472_6976);
    assert_eq!((driver.read(4), driver.read(8)), (2, 4));
    driver.write(0xac, 0);
    assert_eq!((driver.read(0xb0), driver.read(0xb4)), (u32::MAX, u32::MAX));
}

#[test]
fn a_device_runs_and_runs_again_after_a_reset() {
    let memory = memory();
    let (wiring, edges) = wiring();
    let transport = transport_at(&wiring, Rng, &memory);
    let driver = Driver(&transport);
    for _ in 0..3 {
        let mut rings = driver.start(&memory, &[0]);
        assert_eq!(driver.read(STATUS), 15);
        entropy(&transport, &mut rings[0], 1);
        // The used ring comes before the interrupt.
        for _ in 0..5000 {
            if edges.0.load(Ordering::SeqCst) > 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(driver.read(0x60), 1);
        assert!(edges.0.swap(0, Ordering::SeqCst) > 0);
        driver.write(0x64, 1);
        assert_eq!(driver.read(0x60), 0);
        driver.write(STATUS, 0);
        assert_eq!((driver.read(STATUS), driver.read(0x44)), (0, 0));
        rings[0].chain(&[(BUFFERS, 16, WRITE)]);
        driver.write(QUEUE_NOTIFY, 0);
    }
}

#[test]
fn buffers_offered_before_driver_ok_are_seen() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let driver = Driver(&transport);
    driver.negotiate();
    let mut ring = Ring::new(&memory, 0, 16);
    driver.queue(0, &ring);
    ring.chain(&[(BUFFERS, 16, WRITE)]);
    driver.write(STATUS, 15);
    ring.wait(1);
}

#[test]
fn a_bad_queue_needs_a_reset() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let driver = Driver(&transport);
    for (register, value) in
        [(0x38, 3), (0x38, 0), (0x38, 128), (0x80, 8), (0x80, REGION as u32), (0x94, 1), (0xa0, 2)]
    {
        driver.negotiate();
        driver.queue(0, &Ring::new(&memory, 0, 16));
        driver.write(0x44, 0);
        driver.write(register, value);
        driver.write(0x44, 1);
        driver.write(STATUS, 15);
        assert_eq!(driver.read(STATUS), 15 | 64, "{register:#x} <- {value:#x}");
        assert_eq!(driver.read(0x60), 2, "config interrupt");
        assert!(transport.failure().is_some());
        driver.write(STATUS, 0);
        assert_eq!(driver.read(STATUS), 0);
    }
    driver.negotiate();
    driver.write(STATUS, 15);
    assert_eq!(driver.read(STATUS), 79, "the request queue is missing");
    let mut rings = driver.start(&memory, &[0]);
    entropy(&transport, &mut rings[0], 1);
}

#[test]
fn a_handler_that_fails_needs_a_reset() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let ear = told.clone();
    transport.on_failure(move |why| ear.lock().unwrap().push(why.to_owned()));
    let driver = Driver(&transport);
    let rings = driver.start(&memory, &[0]);
    rings[0].offer(999);
    driver.write(QUEUE_NOTIFY, 0);
    for _ in 0..5000 {
        if driver.read(STATUS) == 79 && driver.read(0x60) & 2 == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(driver.read(STATUS), 79);
    assert_eq!(told.lock().unwrap().len(), 1);
    assert!(transport.save().needs_reset);
    let mut rings = driver.start(&memory, &[0]);
    assert_eq!(driver.read(STATUS), 15);
    entropy(&transport, &mut rings[0], 1);
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let driver = Driver(&transport);
    driver.start(&memory, &[0]);
    driver.write(STATUS, 15 | 128);
    assert_eq!(driver.read(STATUS), 15 | 128);
    assert!(transport.save().handler.is_none());
}

#[test]
fn a_paused_device_is_still() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let driver = Driver(&transport);
    let mut rings = driver.start(&memory, &[0]);
    transport.pause();
    rings[0].chain(&[(BUFFERS, 16, WRITE)]);
    driver.write(QUEUE_NOTIFY, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(rings[0].used(0).is_empty());
    assert!(transport.save().handler.is_some());
    assert!(rings[0].used(0).is_empty(), "saving does not wake it");
    transport.resume();
    rings[0].wait(1);
    transport.resume();
}

/// Saves a running device, restores it into another transport, and both go on.
#[test]
fn an_active_device_round_trips() {
    let memory = memory();
    let first = transport(Rng, &memory);
    let mut rings = Driver(&first).start(&memory, &[0]);
    for total in 1..=3 {
        entropy(&first, &mut rings[0], total);
    }
    first.pause();
    let state = first.save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<TransportState>(&bytes).unwrap(), state);
    assert_eq!(state.handler.as_ref().unwrap().queues[0].1.next_used, 3);

    let (wiring, edges) = wiring();
    let second = transport_at(&wiring, Rng, &memory);
    second.restore(state.clone()).unwrap();
    assert_eq!(second.save(), state);
    assert!(matches!(second.restore(state), Err(RestoreError::Busy)));
    second.resume();
    assert_eq!(edges.0.load(Ordering::SeqCst), 1, "an interrupt that may be lost comes again");
    assert_eq!(Driver(&second).read(STATUS), 15);
    entropy(&second, &mut rings[0], 4);
    // And the driver may reset what was restored.
    let mut rings = Driver(&second).start(&memory, &[0]);
    entropy(&second, &mut rings[0], 1);
}

#[test]
fn a_balloon_round_trips_while_it_runs() {
    let memory = memory();
    let balloon = || Balloon::new(&memory, Arc::new(|_, _| Ok(())));
    let (device, handle) = balloon();
    let first = transport(device, &memory);
    let driver = Driver(&first);
    let mut rings = driver.start(&memory, &[0, 1, 4]);
    handle.set_target_mib(1);
    first.config_changed();
    assert_eq!((driver.read(0x60), driver.read(0x100)), (2, 256));
    driver.write(0x104, 256);
    rings[2].chain(&[(HIGH, 0x2000, WRITE)]);
    driver.write(QUEUE_NOTIFY, 4);
    rings[2].wait(1);
    let state = first.save();
    first.pause();

    let (device, handle) = balloon();
    let second = transport(device, &memory);
    second.restore(state).unwrap();
    second.resume();
    assert_eq!((handle.actual_mib(), handle.reported_bytes()), (1, 0x2000));
    rings[2].chain(&[(HIGH, 0x1000, WRITE)]);
    Driver(&second).write(QUEUE_NOTIFY, 4);
    rings[2].wait(2);
    assert_eq!(handle.reported_bytes(), 0x3000);
    let generation = Driver(&second).read(0xfc);
    handle.set_target_mib(0);
    second.config_changed();
    assert_ne!(Driver(&second).read(0xfc), generation);
    assert_eq!(Driver(&second).read(0x100), 0);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let memory = memory();
    let first = transport(Rng, &memory);
    Driver(&first).start(&memory, &[0]);
    let state = first.save();
    let refuse = |change: &dyn Fn(&mut TransportState)| {
        let mut state = state.clone();
        change(&mut state);
        transport(Rng, &memory).restore(state).unwrap_err()
    };
    refuse(&|state| state.device_id = 1);
    refuse(&|state| state.registers.offered |= 1);
    refuse(&|state| state.registers.status = 4);
    refuse(&|state| state.registers.status = 11);
    refuse(&|state| state.registers.accepted = 0);
    refuse(&|state| state.registers.queues.clear());
    refuse(&|state| state.device = vec![1]);
    refuse(&|state| state.handler.as_mut().unwrap().queues[0].0 = 1);
    refuse(&|state| state.handler.as_mut().unwrap().queues.clear());
    refuse(&|state| state.handler.as_mut().unwrap().queues[0].1.max_size = 128);
    refuse(&|state| state.handler.as_mut().unwrap().queues[0].1.size = 3);
    refuse(&|state| state.handler.as_mut().unwrap().queues[0].1.used_ring = u64::MAX - 3);
}

/// A device with queues that no ring can have.
struct Odd;

impl VirtioDevice for Odd {
    fn id(&self) -> u32 {
        0
    }
    fn name(&self) -> &'static str {
        "odd"
    }
    fn queue_sizes(&self) -> &[u16] {
        &[3]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, _: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        Err(ActivateError { device: "odd", message: String::new() })
    }
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    fn restore(&mut self, _state: &[u8]) -> Result<(), ActivateError> {
        Ok(())
    }
}

#[test]
fn a_device_with_an_odd_queue_is_refused() {
    let event_loop = Arc::new(EventLoop::spawn("odd", || ()).unwrap());
    let wiring = wiring().0;
    assert!(Transport::new(Box::new(Odd), memory().into(), event_loop, wiring).is_err());
}

#[test]
fn rings_in_a_hole_are_refused() {
    let memory = memory();
    let transport = transport(Rng, &memory);
    let driver = Driver(&transport);
    driver.negotiate();
    driver.queue(0, &Ring::new(&memory, 0, 16));
    driver.write(0x44, 0);
    driver.write(0x90, 2 << 20);
    driver.write(0x44, 1);
    driver.write(STATUS, 15);
    assert_eq!(driver.read(STATUS), 79);
    memory.write_slice(&[0; 16], GuestAddress(0)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 0..800)) {
        hostile_registers(&data);
    }
}
