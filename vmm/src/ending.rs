//! How a machine's end travels from the thread that notices it to the main
//! thread, which reports it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::EventFd;

/// Whether a thread has panicked. It is parked then, with whatever others wait for.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Lets those who wait for a thread know that one has panicked.
pub fn give_up() {
    PANICKED.store(true, Ordering::Release);
}

/// Whether waiting for another thread may be in vain.
pub fn given_up() -> bool {
    PANICKED.load(Ordering::Acquire)
}

/// Why the machine must end. The main thread adds the console's last lines and
/// makes a `protocol::machine::ExitReason` of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The agent wrote to the power port.
    PowerOff,
    /// The guest's kernel restarted itself: it does so after a panic.
    Reset,
    /// A vCPU triple-faulted.
    TripleFault {
        /// Which.
        vcpu: u8,
    },
    /// KVM could not go on.
    KvmFailure {
        /// Which vCPU.
        vcpu: u8,
        /// The exit and its data.
        what: String,
    },
    /// A thread of ours failed.
    Internal {
        /// Its name.
        thread: String,
        /// What it said.
        message: String,
    },
}

/// Sends an [`Ending`]; the first one counts.
#[derive(Clone)]
pub struct Reporter {
    sender: Sender<Ending>,
    wake: Arc<EventFd>,
}

/// Receives it.
pub struct Endings {
    receiver: Receiver<Ending>,
    /// Readable once something was sent.
    pub wake: Arc<EventFd>,
}

/// A channel that can be waited for with epoll.
///
/// # Errors
/// When there is no descriptor left.
pub fn endings() -> std::io::Result<(Reporter, Endings)> {
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    let (sender, receiver) = channel();
    Ok((Reporter { sender, wake: wake.clone() }, Endings { receiver, wake }))
}

impl Reporter {
    /// Reports the end. Never blocks.
    pub fn report(&self, ending: Ending) {
        // The receiver goes only with the process.
        let _ = self.sender.send(ending);
        let _ = self.wake.write(1);
    }
}

impl Endings {
    /// The first ending, if there is one.
    pub fn take(&self) -> Option<Ending> {
        self.receiver.try_recv().ok()
    }
}
