//! Threads on which device handlers live: epoll, and messages to add a handler
//! or to take it back.
//!
//! ```text
//! EventLoop::spawn -> add(handler) -> id
//!                     take(id) -> handler     (paused: nobody runs it now)
//!                     drop: the thread ends and is joined
//! ```

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::EventFd;

use crate::ending::given_up;
use crate::sched::Manners;

/// How often one who waits for a loop looks whether it is in vain.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a handler may do to its own registration while it runs.
pub struct Registration<'a> {
    epoll: &'a Epoll,
    base: u64,
}

/// Bits of the epoll data that hold the handler's own token.
const TOKEN_BITS: u32 = 40;
/// Handlers that a loop takes in its life: what is left of the epoll data, less
/// the one that [`WAKE`] would collide with.
const MAX_HANDLERS: u32 = (1 << (64 - TOKEN_BITS)) - 1;
/// epoll data of the loop's own wake-up.
const WAKE: u64 = u64::MAX;

#[cfg(any(test, feature = "fuzzing"))]
impl<'a> Registration<'a> {
    /// For tests that call a handler without a loop.
    pub fn detached(epoll: &'a Epoll) -> Registration<'a> {
        Registration { epoll, base: 0 }
    }
}

impl Registration<'_> {
    /// Watches `fd` for `flags`; `ready` is called with `token` (below 2^40).
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn watch(&self, fd: BorrowedFd, flags: EpollFlags, token: u64) -> nix::Result<()> {
        debug_assert!(token < 1 << TOKEN_BITS);
        self.epoll.add(fd, EpollEvent::new(flags, self.base | token))
    }

    /// Changes what is watched on `fd`.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn change(&self, fd: BorrowedFd, flags: EpollFlags, token: u64) -> nix::Result<()> {
        self.epoll.modify(fd, &mut EpollEvent::new(flags, self.base | token))
    }

    /// Stops watching `fd`. Call it before the descriptor is closed.
    pub fn forget(&self, fd: BorrowedFd) {
        // An fd that is not watched is what the caller wants.
        let _ = self.epoll.delete(fd);
    }
}

/// The running half of a device.
pub trait Handler: Send + Any {
    /// Registers the descriptors. Called on the loop's thread, also when a
    /// handler that was taken comes back; work may be waiting already, so check
    /// the queues here.
    ///
    /// # Errors
    /// When a descriptor cannot be watched.
    fn start(&mut self, registration: &Registration) -> Result<(), HandlerError>;
    /// Unregisters what `start` and `ready` registered.
    fn stop(&mut self, registration: &Registration);
    /// Something happened on the descriptor registered with `token`.
    ///
    /// # Errors
    /// An error takes the handler off the loop and the device stops with
    /// DEVICE_NEEDS_RESET: return it only for what the driver did against the
    /// specification or what cannot be survived.
    fn ready(
        &mut self,
        token: u64,
        flags: EpollFlags,
        registration: &Registration,
    ) -> Result<(), HandlerError>;
    /// Queues (index, state) as they are now. Called on a taken handler.
    fn queues(&self) -> Vec<(usize, crate::devices::virtio::device::SavedQueue)>;
    /// State of the handler beside its queues, as postcard bytes.
    fn save(&self) -> Vec<u8>;
}

/// Why a handler cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("virtio-{device}: {message}")]
pub struct HandlerError {
    /// Name of the device.
    pub device: &'static str,
    /// What happened.
    pub message: String,
}

/// Called when a handler failed and was dropped.
pub type OnFailure = Box<dyn Fn(HandlerError) + Send>;

enum Message {
    Add(u32, Box<dyn Handler>, OnFailure),
    Take(u32, Sender<Option<Box<dyn Handler>>>),
    Run(Box<dyn FnOnce() + Send>),
    Quit,
}

/// Names a handler on its loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandlerId(u32);

/// A thread that runs handlers. Cloning is by `Arc`.
pub struct EventLoop {
    sender: std::sync::Mutex<Sender<Message>>,
    wake: EventFd,
    next: std::sync::atomic::AtomicU32,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the thread `name`. `prepare` runs on it first (seccomp).
    ///
    /// # Errors
    /// When epoll, eventfd or the thread cannot be made.
    pub fn spawn(
        name: &str,
        prepare: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<EventLoop> {
        EventLoop::spawn_polite(name, || {
            prepare();
            None
        })
    }

    /// As `spawn`, for a thread that keeps the manners that `prepare` gives.
    ///
    /// # Errors
    /// As `spawn`.
    pub fn spawn_polite(
        name: &str,
        prepare: impl FnOnce() -> Option<Manners> + Send + 'static,
    ) -> std::io::Result<EventLoop> {
        let (sender, receiver) = channel();
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(Borrowed(wake.as_raw_fd()), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let waker = wake.try_clone()?;
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let manners = prepare();
            Worker { epoll, receiver, wake: waker, handlers: HashMap::new(), manners }.run();
        })?;
        Ok(EventLoop { sender: sender.into(), wake, next: 0.into(), thread: Some(thread) })
    }

    /// Puts a handler on the loop.
    pub fn add(&self, handler: Box<dyn Handler>, on_failure: OnFailure) -> HandlerId {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if id < MAX_HANDLERS {
            self.send(Message::Add(id, handler, on_failure));
        } else {
            // A guest that resets devices in a loop gets here after hours. Stay
            // at the end: the counter must not come round to a living handler.
            self.next.store(MAX_HANDLERS, std::sync::atomic::Ordering::Relaxed);
            on_failure(HandlerError { device: "any", message: "activated too often".into() });
        }
        HandlerId(id)
    }

    /// Takes a handler off the loop; `None` when it failed before, or a thread has panicked
    /// meanwhile.
    pub fn take(&self, id: HandlerId) -> Option<Box<dyn Handler>> {
        let (sender, receiver) = channel();
        self.send(Message::Take(id.0, sender));
        answer(&receiver).flatten()
    }

    /// Runs `work` on the loop's thread, between two events, and waits for it.
    /// `None` when the thread is gone, or another has panicked meanwhile.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = channel();
        self.send(Message::Run(Box::new(move || {
            let _ = sender.send(work());
        })));
        answer(&receiver)
    }

    fn send(&self, message: Message) {
        // The thread ends only by Quit, or by a panic, which ends the process.
        let _ = self.sender.lock().expect("no panic while sending").send(message);
        let _ = self.wake.write(1);
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.send(Message::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the loop's thread answers. One that has panicked does not end by itself, and its end of
/// the channel stays open.
fn answer<T>(receiver: &Receiver<T>) -> Option<T> {
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Timeout) if !given_up() => {}
            other => return other.ok(),
        }
    }
}

/// A raw descriptor whose owner outlives the call.
struct Borrowed(RawFd);

impl AsFd for Borrowed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(self.0)
    }
}

/// Borrows a descriptor whose owner (an [`EventFd`], say, which has no `AsFd`)
/// the caller keeps alive.
#[allow(unsafe_code)]
pub fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    debug_assert!(fd >= 0);
    // SAFETY: the descriptor is open as long as its owner, which callers of this
    // crate keep for the duration of the borrow; a stale number could only make
    // epoll_ctl fail, never touch memory.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

struct Worker {
    epoll: Epoll,
    receiver: Receiver<Message>,
    wake: EventFd,
    handlers: HashMap<u32, (Box<dyn Handler>, OnFailure)>,
    manners: Option<Manners>,
}

impl Worker {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(error) => panic!("epoll_wait: {error}"),
            };
            self.manners.iter_mut().for_each(Manners::woken);
            for event in &events[..count] {
                if event.data() == WAKE {
                    let _ = self.wake.read();
                    if !self.messages() {
                        return;
                    }
                } else {
                    self.dispatch(event.data(), event.events());
                }
            }
        }
    }

    /// Handles all waiting messages; false to end.
    fn messages(&mut self) -> bool {
        while let Ok(message) = self.receiver.try_recv() {
            match message {
                Message::Add(id, mut handler, on_failure) => {
                    let registration = Registration { epoll: &self.epoll, base: base(id) };
                    match handler.start(&registration) {
                        Ok(()) => drop(self.handlers.insert(id, (handler, on_failure))),
                        Err(error) => {
                            // What it registered before it failed: a kick stays
                            // open in the transport, and so in epoll.
                            handler.stop(&registration);
                            on_failure(error);
                        }
                    }
                }
                Message::Take(id, reply) => {
                    let taken = self.handlers.remove(&id).map(|(mut handler, _)| {
                        handler.stop(&Registration { epoll: &self.epoll, base: base(id) });
                        handler
                    });
                    let _ = reply.send(taken);
                }
                Message::Run(work) => work(),
                Message::Quit => return false,
            }
        }
        true
    }

    fn dispatch(&mut self, data: u64, flags: EpollFlags) {
        let id = (data >> TOKEN_BITS) as u32;
        // A handler that was taken a moment ago may still have events under way.
        let Some((handler, _)) = self.handlers.get_mut(&id) else { return };
        let registration = Registration { epoll: &self.epoll, base: base(id) };
        let token = data & ((1 << TOKEN_BITS) - 1);
        if let Err(error) = handler.ready(token, flags, &registration) {
            handler.stop(&registration);
            if let Some((handler, on_failure)) = self.handlers.remove(&id) {
                drop(handler);
                on_failure(error);
            }
        }
    }
}

fn base(id: u32) -> u64 {
    u64::from(id) << TOKEN_BITS
}
