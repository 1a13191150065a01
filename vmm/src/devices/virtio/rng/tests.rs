use proptest::prelude::*;

use super::handler::MAX_BYTES;
use super::*;
use crate::devices::virtio::testing::{BUFFERS, Bench, HIGH, WRITE, hostile_rng, memory};

#[test]
fn buffers_are_filled() {
    let mut bench = Bench::new(&mut Rng, memory(), &[0]);
    bench.rings[0].chain(&[(BUFFERS, 3000, WRITE), (HIGH, 100, WRITE)]);
    bench.rings[0].chain(&[(BUFFERS + 0x1000, 64, 0)]);
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0), [3100, 0]);
    let bytes = bench.bytes(BUFFERS, 3000);
    assert!(bytes.chunks(100).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
    assert_eq!(bench.bytes(BUFFERS + 3000, 1096), [0; 1096]);
    assert_eq!(bench.interrupt.queue.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_request_is_capped() {
    let mut bench = Bench::new(&mut Rng, memory(), &[0]);
    bench.rings[0].chain(&[(BUFFERS, MAX_BYTES as u32 - 1, WRITE), (HIGH, 1000, WRITE)]);
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0), [MAX_BYTES as u32]);
    assert_eq!(bench.bytes(HIGH + 1, 999), [0; 999]);
}

#[test]
fn a_wake_up_is_bounded_and_comes_again() {
    let mut bench = Bench::new(&mut Rng, memory(), &[0]);
    for _ in 0..40 {
        bench.rings[0].chain(&[(BUFFERS, 8, WRITE)]);
    }
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0).len(), 16);
    bench.kick(0).unwrap();
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0), [8; 40]);
}

#[test]
fn a_broken_ring_is_an_error() {
    let mut bench = Bench::new(&mut Rng, memory(), &[0]);
    bench.rings[0].offer(64);
    assert!(bench.kick(0).is_err(), "a head beyond the table");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 8..600)) {
        hostile_rng(&data);
    }
}
