//! The device on its event loop, and its saved state.

use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{InHeader, InitIn, Opcode, OutHeader};
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::virtio::device::{ActiveQueue, Interrupt};
use crate::event_loop::EventLoop;

struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn queue(&self, _index: u16) {}
}

fn device() -> (Fs, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let kind = protocol::machine::ShareKind::Private;
    let path = dir.path().to_owned();
    let share = ShareConfig { name: "it".into(), path, kind, read_only: false, passing: false };
    (Fs::new(vec![share], 1), dir)
}

#[test]
fn configuration_and_state() {
    let (mut fs, _dir) = device();
    let mut config = [0xff; 44];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..9], b"bulkhead\0");
    assert_eq!(config[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fs.queue_sizes(), [64, 512]);
    let saved = fs.save();
    fs.restore(&saved).unwrap();
    assert_eq!(fs.save(), saved);
    assert!(fs.restore(&[]).is_err());
    assert!(Fs::new(Vec::new(), 2).restore(&saved).is_err());
    fs.handle.mounted.store(true, Ordering::Relaxed);
    let mounted = fs.save();
    assert!(fs.restore(&mounted).is_err());
}

#[test]
fn requests_are_served_on_the_loop() {
    let (mut fs, _dir) = device();
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let ring = MockSplitQueue::new(&*memory, 16);
    let header =
        InHeader { len: 56, opcode: Opcode::Init as u32, unique: 9, ..InHeader::default() };
    let init = InitIn { major: 7, minor: 40, max_readahead: 0, flags: 0 };
    let input = [header.as_slice(), init.as_slice()].concat();
    memory.write_slice(&input, GuestAddress(0x1_0000)).unwrap();
    let chain = [
        RawDescriptor::from(Descriptor::new(0x1_0000, 56, 0, 0)),
        RawDescriptor::from(Descriptor::new(0x2_0000, 80, VRING_DESC_F_WRITE as u16, 0)),
    ];
    ring.build_desc_chain(&chain).unwrap();
    let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let queue =
        ActiveQueue { queue: ring.create_queue().unwrap(), kick: kick.try_clone().unwrap() };
    let activation = Activation {
        memory: memory.clone().into(),
        queues: vec![None, Some(queue)],
        features: 0,
        interrupt: Arc::new(NoInterrupt),
    };
    let handler = fs.activate(activation).unwrap();
    let events = EventLoop::spawn("fs-test", || {}).unwrap();
    let id = events.add(handler, Box::new(|error| panic!("{error}")));
    let start = Instant::now();
    while ring.used().idx().load() == 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    let out: OutHeader = memory.read_obj(GuestAddress(0x2_0000)).unwrap();
    assert_eq!((out.error, out.unique), (0, 9));
    let handler = events.take(id).unwrap();
    assert_eq!(handler.queues()[0].1.next_used, 1);
    assert!(fs.handle().is_mounted());
    assert_eq!(fs.handle().requests(), 1);
    let nothing = Activation {
        memory: memory.into(),
        queues: vec![None, None],
        features: 0,
        interrupt: Arc::new(NoInterrupt),
    };
    assert!(fs.activate(nothing).is_err());
}
