//! The task against a real child process (a shell that sleeps) and a VMM played
//! by the test at the other end of the socket.

use std::process::{Child, Command as Shell};

use nix::sys::wait::WaitStatus;
use protocol::machine::Stats;

use super::*;

struct Fake {
    socket: OwnedFd,
    handle: VmmHandle,
    events: mpsc::Receiver<VmmEvent>,
    _child: Child,
}

/// A handle whose process is `script`.
fn fake(script: &str) -> Fake {
    let child = Shell::new("/bin/sh").args(["-c", script]).spawn().unwrap();
    let pidfd = Arc::new(PidFd::open(child.id() as i32).unwrap());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (control, socket) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let (commands, inbox) = mpsc::unbounded_channel();
    let (event_sender, events) = mpsc::channel(16);
    let (end_sender, end) = watch::channel(None);
    let (console, _) = Tail::pipe().unwrap();
    let (stderr, _) = Tail::pipe().unwrap();
    let pid = child.id() as i32;
    let handle = VmmHandle { pid, pidfd: pidfd.clone(), commands, console, end };
    let task = Task {
        control: watch_fd(control).unwrap(),
        pidfd: watch_process(pidfd).unwrap(),
        inbox,
        events: event_sender,
        waiting: HashMap::new(),
        next_id: 0,
        reason: None,
        stderr,
    };
    tokio::spawn(task.run(end_sender));
    Fake { socket, handle, events, _child: child }
}

impl Fake {
    fn say(&self, message: &FromVmm, fds: &[BorrowedFd]) {
        let bytes = serde_json::to_vec(message).unwrap();
        send_packet(self.socket.as_fd(), &bytes, fds).unwrap();
    }

    async fn hear(&self) -> Command {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            match receive_packet(self.socket.as_fd(), &mut buffer) {
                Ok(packet) => return serde_json::from_slice(&buffer[..packet.length]).unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

#[tokio::test]
async fn replies_find_their_request() {
    let fake = fake("sleep 60");
    let pending = fake.handle.request(Request::Stats, Vec::new());
    let command = fake.hear().await;
    assert_eq!(command.request, Request::Stats);
    let stats = Stats { fs_requests: 3, ..Stats::default() };
    fake.say(&FromVmm::Reply { id: 999, reply: Ok(Reply::Done) }, &[]);
    fake.say(&FromVmm::Reply { id: command.id, reply: Ok(Reply::Stats(stats.clone())) }, &[]);
    assert_eq!(pending.await.unwrap(), Reply::Stats(stats));
}

#[tokio::test]
async fn a_connection_of_the_guest_arrives_with_its_stream() {
    let mut fake = fake("sleep 60");
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    fake.say(&FromVmm::Event(Event::GuestConnect { port: 1026 }), &[b.as_fd()]);
    drop(b);
    let Some(VmmEvent::GuestConnect { port: 1026, stream }) = fake.events.recv().await else {
        panic!()
    };
    drop(a);
    stream.readable().await.unwrap();
}

#[tokio::test]
async fn the_reason_outlives_the_process() {
    let fake = fake("exit 3");
    fake.say(&FromVmm::Event(Event::Exited(ExitReason::PowerOff)), &[]);
    let end = fake.handle.ended().await;
    assert!(end.is_power_off());
    assert!(matches!(end.status, Some(WaitStatus::Exited(_, 3))));
}

#[tokio::test]
async fn a_killed_vmm_fails_what_is_under_way() {
    let fake = fake("sleep 60");
    let pending = fake.handle.request(Request::Pause, Vec::new());
    fake.hear().await;
    fake.handle.kill();
    assert!(matches!(pending.await, Err(ControlError::Gone)));
    assert!(fake.handle.ended().await.to_string().contains("SIGKILL"));
    let late = fake.handle.request(Request::Pause, Vec::new());
    assert!(matches!(late.await, Err(ControlError::Gone)));
}

#[tokio::test]
async fn a_vmm_that_talks_nonsense_is_killed() {
    let fake = fake("sleep 60");
    send_packet(fake.socket.as_fd(), b"{\"event\":", &[]).unwrap();
    let end = fake.handle.ended().await;
    assert!(end.to_string().contains("cannot be understood"), "{end}");
}

#[tokio::test]
async fn dropping_the_handle_reaps_the_process() {
    let fake = fake("sleep 60");
    let pid = fake.handle.pid();
    drop(fake.handle);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
