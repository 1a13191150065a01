//! With the kernel's own tap, in a network namespace of a child, under the thread's filter.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, recv, socket};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::devices::virtio::testing::wiring;
use crate::devices::virtio::transport::Transport;
use crate::event_loop::EventLoop;
use crate::jail::{Filters, ThreadKind};

/// Neither namespace nor tap can be had here.
const SKIPPED: i32 = 77;

#[allow(unsafe_code)]
fn request() -> libc::ifreq {
    // SAFETY: zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"tap0") {
        *place = *byte as libc::c_char;
    }
    request
}

/// A queue of the interface tap0.
#[allow(unsafe_code)]
fn tap(flags: i32) -> std::io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes a `struct ifreq`.
    nix::Error::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(file.into())
}

/// Brings tap0 up; a socket for all of its frames.
#[allow(unsafe_code)]
fn outside() -> OwnedFd {
    let protocol = SockProtocol::EthAll;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol).unwrap();
    let mut request = request();
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads a `struct ifreq`.
    nix::Error::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
        .unwrap();
    socket
}

#[allow(unsafe_code)]
fn emit(socket: &OwnedFd, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex("tap0").unwrap();
    // SAFETY: zeros are an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    let (bytes, to) = (frame.as_ptr().cast(), std::ptr::from_ref(&address).cast());
    // SAFETY: frame and address are borrowed for the call, with their sizes.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), bytes, frame.len(), 0, to, len) };
    assert_eq!(sent, frame.len() as isize);
}

/// Whether `look` finds something within five seconds.
fn soon(mut look: impl FnMut() -> bool) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        look()
    })
}

/// Runs `body` as root of new user and network namespaces, in a process of its own.
#[allow(unsafe_code)]
fn in_namespace(body: impl FnOnce()) {
    // SAFETY: the child's only thread is a copy of this one, and the C library makes its
    // allocator usable in it.
    let status = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            // A lock that another thread of the parent held is held for ever.
            std::panic::set_hook(Box::new(|info| {
                let _ = nix::unistd::write(std::io::stderr(), info.to_string().as_bytes());
                // SAFETY: as below.
                unsafe { libc::_exit(1) }
            }));
            nix::unistd::alarm::set(60);
            let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
            // The tap is gone before the body makes its own.
            let possible = matches!(unshare(namespaces).map(|()| tap(0)), Ok(Ok(_)));
            if possible {
                body();
            }
            let code = if possible { 0 } else { SKIPPED };
            // SAFETY: it ends the process without running what the test's owns.
            unsafe { libc::_exit(code) }
        }
    };
    match status {
        WaitStatus::Exited(_, 0) => {}
        WaitStatus::Exited(_, SKIPPED) => eprintln!("skipped: no namespaces or no /dev/net/tun"),
        other => panic!("{other:?}"),
    }
}

/// A transport on a loop of its own, confined as in a machine.
fn confined(device: Net, memory: &crate::memory::GuestRam) -> Transport {
    let prepare = || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        Filters::compile().unwrap().apply(ThreadKind::Net).unwrap();
    };
    let thread = Arc::new(EventLoop::spawn("net", prepare).unwrap());
    Transport::new(Box::new(device), memory.clone().into(), thread, wiring().0).unwrap()
}

fn description() -> machine::Net {
    machine::Net { mac: MAC, mtu: 1500, taps: Vec::new(), limits: None, guard: Some(guard()) }
}

#[test]
fn frames_pass_a_real_tap_both_ways() {
    in_namespace(|| {
        let device = Net::new(&description(), vec![tap(0).unwrap()]).unwrap();
        let outside = outside();
        let (memory, counters) = (memory(), device.counters());
        let transport = confined(device, &memory);
        let driver = Driver(&transport);
        let mut rings = driver.start(&memory, &[0, 1]);
        for index in 0..16 {
            rings[0].chain(&[(HIGH + index * 0x4000, 0x4000, WRITE)]);
        }
        driver.write(0x50, 0);
        let sent = packet(200);
        let put = |bytes: &[u8]| {
            let address = vm_memory::GuestAddress(BUFFERS);
            vm_memory::Bytes::write_slice(&*memory, bytes, address).unwrap();
        };
        put(&sent);
        rings[1].chain(&[(BUFFERS, sent.len() as u32, 0)]);
        driver.write(0x50, 1);
        let mut frame = [0; 2000];
        let arrived = soon(|| {
            recv(outside.as_raw_fd(), &mut frame, MsgFlags::empty()) == Ok(200)
                && frame[..200] == sent[HEADER..]
        });
        assert!(arrived, "the guest's frame on the interface");
        let mut reply = packet(300)[HEADER..].to_vec();
        reply[6] = 6;
        emit(&outside, &reply);
        // The kernel's own frames (IPv6 looks for its neighbours) may come first.
        assert!(soon(|| rings[0].used(0).contains(&312)), "the reply in the guest's memory");
        let counted = counters.now()[0];
        assert_eq!((counted.from_guest.packets, counted.from_guest.tap), (1, 0));
        assert!(counted.to_guest.packets >= 1 && counted.to_guest.malformed == 0);
        driver.write(0x70, 0);
        drop(transport);
        assert!(nix::net::if_::if_nametoindex("tap0").is_err(), "the tap went with the device");
    });
}

#[test]
fn queues_of_a_real_tap_are_switched() {
    in_namespace(|| {
        let taps = (0..2).map(|_| tap(libc::IFF_MULTI_QUEUE).unwrap()).collect();
        let device = Net::new(&description(), taps).unwrap();
        let _outside = outside();
        let memory = memory();
        let transport = confined(device, &memory);
        let driver = Driver(&transport);
        let mut rings = driver.start(&memory, &[0, 1, 2, 3, 4]);
        let answer = BUFFERS + 0x100;
        for (turn, pairs) in [2u8, 1, 2].into_iter().enumerate() {
            let command = vm_memory::GuestAddress(BUFFERS);
            vm_memory::Bytes::write_slice(&*memory, &[4, 0, pairs, 0], command).unwrap();
            rings[4].chain(&[(BUFFERS, 4, 0), (answer, 1, WRITE)]);
            driver.write(0x50, 4);
            assert_eq!(rings[4].wait(turn as u16 + 1).last(), Some(&1));
            let status: u8 =
                vm_memory::Bytes::read_obj(&*memory, vm_memory::GuestAddress(answer)).unwrap();
            assert_eq!(status, 0);
        }
        transport.pause();
        assert_eq!(transport.save().handler.unwrap().bytes, [2]);
        transport.resume();
        assert_eq!(driver.read(0x70), 15);
    });
}

#[test]
fn another_kind_of_tap_is_refused() {
    in_namespace(|| {
        let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        assert!(Net::new(&description(), vec![file.into()]).is_err(), "not attached");
    });
}
