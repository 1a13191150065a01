use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::request::{SEG_MAX, SIZE_MAX};
use super::*;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{BUFFERS, Bench, HIGH, WRITE, hostile_block, memory};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn disk(sectors: u64, read_only: bool) -> (File, Block) {
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> =
        (0..sectors * SECTOR).map(|byte| ((byte / SECTOR) as u8).wrapping_add(1)).collect();
    file.write_all_at(&content, 0).unwrap();
    let device = Block::new(Disk::new(file.try_clone().unwrap(), "serial", read_only).unwrap());
    (file, device)
}

fn bench(sectors: u64) -> (File, Bench) {
    let (file, mut device) = disk(sectors, false);
    (file, Bench::new(&mut device, memory(), &[0]))
}

/// Sends one request; gives (status, length in the used ring).
fn ask(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    bench.put(HEADER, &header);
    bench.put(STATUS, &[0xee]);
    let mut chain = vec![(HEADER, 16, 0)];
    chain.extend(data);
    chain.push((STATUS, 1, WRITE));
    let before = bench.rings[0].used(0).len() as u16;
    bench.rings[0].chain(&chain);
    bench.kick(0).unwrap();
    (bench.bytes(STATUS, 1)[0], bench.rings[0].used(before)[0])
}

#[test]
fn reads_and_writes_reach_the_file() {
    let (file, mut bench) = bench(8);
    let segments = [(DATA, 512, WRITE), (HIGH, 1024, WRITE)];
    assert_eq!(ask(&mut bench, 0, 2, &segments), (OK, 1537));
    assert_eq!(bench.bytes(DATA, 512), [3; 512]);
    assert_eq!(bench.bytes(HIGH, 1024), [[4; 512], [5; 512]].concat());
    bench.put(DATA, &[9; 512]);
    assert_eq!(ask(&mut bench, 1, 7, &[(DATA, 100, 0), (DATA, 412, 0)]), (OK, 1));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 7 * SECTOR).unwrap();
    assert_eq!(sector, [9; 512]);
    assert_eq!(ask(&mut bench, 4, 0, &[]), (OK, 1));
}

#[test]
fn transfers_are_bounded() {
    let (_, mut bench) = bench(8);
    for (sector, len) in [(8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)] {
        assert_eq!(ask(&mut bench, 0, sector, &[(DATA, len, WRITE)]), (IOERR, 1), "{sector} {len}");
        assert_eq!(ask(&mut bench, 1, sector, &[(DATA, len, 0)]), (IOERR, 1));
    }
    assert_eq!(ask(&mut bench, 0, 0, &[(1 << 40, 512, WRITE)]), (IOERR, 1));
    let (_, mut large) = self::bench(2048);
    assert_eq!(ask(&mut large, 0, 0, &[(HIGH, SIZE_MAX, WRITE)]), (OK, SIZE_MAX + 1));
    assert_eq!(ask(&mut large, 0, 0, &[(HIGH, SIZE_MAX + 512, WRITE)]), (IOERR, 1));
}

#[test]
fn the_serial_number() {
    let (_, mut bench) = bench(1);
    assert_eq!(ask(&mut bench, 8, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    assert_eq!(bench.bytes(DATA, 20), b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(ask(&mut bench, 8, 0, &[(DATA, 3, WRITE)]), (OK, 4));
}

#[test]
fn discard_and_write_zeroes() {
    let (file, mut bench) = bench(32);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    bench.put(DATA, &[range(8, 8, 0), range(31, 1, 0)].concat());
    assert_eq!(ask(&mut bench, 11, 0, &[(DATA, 32, 0)]), (OK, 1));
    let mut sectors = [1; 512 * 10];
    file.read_exact_at(&mut sectors, 7 * SECTOR).unwrap();
    assert_eq!(sectors[..512], [8; 512]);
    assert_eq!(sectors[512..512 * 9], [0; 512 * 8]);
    assert_eq!(sectors[512 * 9..], [17; 512]);
    bench.put(DATA, &range(0, 4, 1));
    assert_eq!(ask(&mut bench, 13, 0, &[(DATA, 16, 0)]), (OK, 1));
    assert_eq!(ask(&mut bench, 11, 0, &[(DATA, 16, 0)]), (UNSUPP, 1), "unmap is no discard");
    bench.put(DATA, &range(31, 2, 0));
    assert_eq!(ask(&mut bench, 11, 0, &[(DATA, 16, 0)]), (IOERR, 1));
    for len in [0, 15, 17, 17 * 16] {
        assert_eq!(ask(&mut bench, 11, 0, &[(DATA, len, 0)]), (IOERR, 1), "{len}");
    }
    assert_eq!(file.metadata().unwrap().len(), 32 * SECTOR);
}

#[test]
fn a_read_only_disk() {
    let (file, mut device) = disk(8, true);
    assert_ne!(device.features() & 1 << 5, 0);
    let mut bench = Bench::new(&mut device, memory(), &[0]);
    assert_eq!(ask(&mut bench, 1, 0, &[(DATA, 512, 0)]), (IOERR, 1));
    assert_eq!(ask(&mut bench, 11, 0, &[(DATA, 16, 0)]), (IOERR, 1));
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITE)]), (OK, 513));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [1; 512]);
}

#[test]
fn malformed_chains() {
    let (_, mut bench) = bench(8);
    assert_eq!(ask(&mut bench, 99, 0, &[]), (UNSUPP, 1));
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITE), (DATA, 512, 0)]), (IOERR, 1));
    // No status; no header; a status outside memory: given back, nothing told.
    for chain in [[(HEADER, 16, 0)], [(STATUS, 1, WRITE)], [(1 << 40, 1, WRITE)]] {
        let before = bench.rings[0].used(0).len() as u16;
        bench.rings[0].chain(&chain);
        bench.kick(0).unwrap();
        assert!(bench.rings[0].used(before)[0] <= 1);
    }
    assert_eq!(bench.bytes(STATUS, 1), [IOERR]);
}

#[test]
fn a_loop_of_descriptors_ends() {
    let (_, mut bench) = bench(8);
    bench.rings[0].describe(0, HEADER, 16, 1, 0);
    bench.rings[0].offer(0);
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0), [0]);
}

#[test]
fn a_header_in_pieces() {
    let (_, mut bench) = bench(8);
    bench.put(HEADER, &[0; 16]);
    bench.rings[0].chain(&[(HEADER, 7, 0), (HEADER + 7, 9, 0), (DATA, 513, WRITE)]);
    bench.kick(0).unwrap();
    assert_eq!(bench.rings[0].used(0), [513]);
    assert_eq!(bench.bytes(DATA, 513), [[1; 512].as_slice(), &[OK]].concat());
}

#[test]
fn the_configuration() {
    let (_, device) = disk(8, false);
    let mut config = [0xff; 64];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], 8u64.to_le_bytes());
    assert_eq!(config[12..16], SEG_MAX.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[60..], [0; 4], "beyond the end");
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 64]);
}

#[test]
fn the_state_names_the_disk() {
    let ((_, device), (_, mut same), (_, mut larger)) =
        (disk(8, false), disk(8, false), disk(9, false));
    same.restore(&device.save()).unwrap();
    assert!(larger.restore(&device.save()).is_err());
    assert!(same.restore(&[0xff; 3]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_driver_breaks_it(data in prop::collection::vec(any::<u8>(), 8..600)) {
        hostile_block(&data);
    }
}
