//! When the driver hears of frames that are gone.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{transport_at, wiring};

#[test]
fn word_of_small_frames_comes_a_moment_later_if_it_is_wanted_then() {
    let mut wire = wire(|_| ());
    let flags = GuestAddress(wire.bench.rings[TX].avail());
    let small = packet(60);
    bring(&mut wire, 0, 40, 4096);
    for _ in 0..3 {
        wire.transmit(&small).unwrap();
        assert_eq!(wire.interrupts(), 0, "it is gone and nothing hangs on it");
        wire.arrive(&small);
        // The driver finds the other one as well when it comes for this.
        wire.bench.memory.write_obj(1u16, flags).unwrap();
        assert_eq!((wire.interrupts(), wire.tick()), (1, 0), "one is for both");
        wire.bench.memory.write_obj(0u16, flags).unwrap();
        wire.transmit(&small).unwrap();
        assert_eq!((wire.interrupts(), wire.tick(), wire.tick()), (0, 1, 0));
    }
    assert_eq!(wire.used(TX).len(), 6);
}

#[test]
fn word_of_many_bytes_comes_at_once() {
    let mut wire = wire(|_| ());
    let big = packet(9000);
    assert_eq!(wire.transmit(&big), Some(big));
    assert_eq!(wire.interrupts(), 1);
    // Several that are more than that together, and what follows them waits again.
    let middle = packet(1514);
    for _ in 0..5 {
        wire.transmit(&middle).unwrap();
        assert_eq!(wire.interrupts(), 0);
    }
    wire.transmit(&middle).unwrap();
    assert_eq!(wire.interrupts(), 1);
    wire.transmit(&middle).unwrap();
    assert_eq!((wire.interrupts(), wire.tick()), (0, 1));
    // A good part of the ring.
    let small = packet(60);
    for (count, interrupts) in [(wire.bench.rings[TX].size / 4 - 1, 0), (1, 1)] {
        for _ in 0..count {
            wire.offer(&small);
        }
        wire.bench.kick(TX as u64).unwrap();
        assert_eq!(wire.interrupts(), interrupts);
    }
}

#[test]
fn a_driver_that_wants_no_word_gets_none_later_either() {
    let mut wire = wire(|_| ());
    let flags = GuestAddress(wire.bench.rings[TX].avail());
    wire.bench.memory.write_obj(1u16, flags).unwrap();
    wire.transmit(&packet(60)).unwrap();
    assert_eq!((wire.interrupts(), wire.tick()), (0, 0));
}

/// By the real timer, and when the device is paused before that.
#[test]
fn no_word_is_lost() {
    let memory = memory();
    let (device, ends) = interface(1, |_| ());
    let (wiring, edges) = wiring();
    let transport = transport_at(&wiring, device, &memory);
    let mut rings = Driver(&transport).start_with(&memory, &[0, 1], 256);
    let small = packet(60);
    memory.write_slice(&small, GuestAddress(BUFFERS)).unwrap();
    let mut send_one = |number: u16| {
        // With event indices, as Linux has it: of this one the driver wants to hear.
        let event = rings[1].avail() + 4 + 2 * u64::from(rings[1].size);
        memory.write_obj(number - 1, GuestAddress(event)).unwrap();
        rings[1].chain(&[(BUFFERS, small.len() as u32, 0)]);
        Driver(&transport).write(0x50, 1);
        rings[1].wait(number);
        sent(&ends[0]).unwrap();
    };
    for number in 1..=20 {
        send_one(number);
        let start = Instant::now();
        while edges.0.load(Ordering::SeqCst) < u32::from(number) {
            assert!(start.elapsed() < Duration::from_secs(5), "no word of frame {number}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    for number in 21..=40 {
        send_one(number);
        transport.pause();
        let told = edges.0.load(Ordering::SeqCst);
        assert_eq!(told, u32::from(number), "by the timer or by the pause");
        // That is an edge by itself: it may have been lost.
        transport.resume();
        edges.0.store(told, Ordering::SeqCst);
    }
}
