//! Kicks on a running event loop: they are watched by edge and never read.

use vm_memory::{Bytes, GuestAddress};

use super::*;

#[test]
fn each_kick_is_heard_and_what_is_left_kicks_itself() {
    let memory = memory();
    let (device, ends) = interface(1, |_| ());
    let transport = transport(device, &memory);
    let mut rings = Driver(&transport).start_with(&memory, &[0, 1], 256);
    let packet = packet(60);
    let address = GuestAddress(BUFFERS);
    memory.write_slice(&packet, address).unwrap();
    let mut gone = 0;
    // One by one, several for one kick, and more than there are in a budget.
    for count in [1, 1, 1, 5, 100, 1, 200, 1] {
        for _ in 0..count {
            rings[1].chain(&[(BUFFERS, packet.len() as u32, 0)]);
        }
        Driver(&transport).write(0x50, 1);
        gone += count;
        let start = Instant::now();
        for _ in 0..count {
            while sent(&ends[0]).is_none() {
                assert!(start.elapsed() < Duration::from_secs(5), "{gone}: a kick was lost");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    // The same for buffers: the frames waited for them.
    for count in [1u64, 100] {
        for _ in 0..count {
            send(ends[0].as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT).unwrap();
        }
        for index in 0..count {
            rings[0].chain(&[(HIGH + index * 0x2000, 0x2000, WRITE)]);
        }
        // Room for the largest.
        rings[0].chain(&[(HIGH + 0xe_0000, 0x1_2000, WRITE)]);
        Driver(&transport).write(0x50, 0);
        rings[0].wait(count as u16);
    }
}
