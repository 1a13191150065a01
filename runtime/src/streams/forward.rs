//! Signals that reach us are the process's, as long as we stand for it.

use protocol::agent::{Call, ProcessId};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::RawTerminal;
use crate::agent::Agent;

/// Signals that are passed on, and all real-time ones. The rest cannot be caught, are
/// the kernel's word on this process's own doings (SIGSEGV, SIGPIPE, SIGCHLD, SIGXCPU),
/// or are a terminal's (SIGTSTP, SIGWINCH). SIGINT and SIGQUIT of a terminal never come
/// here while it is raw; the keys go to the process as bytes.
const FORWARDED: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// Catches signals from its creation on.
#[derive(Debug)]
pub struct Caught(mpsc::Receiver<i32>);

impl Caught {
    /// Begins to catch all that are passed on.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn begin() -> std::io::Result<Caught> {
        let (sender, receiver) = mpsc::channel(16);
        for number in FORWARDED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            let mut arrivals = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() && sender.send(number).await.is_ok() {}
            });
        }
        Ok(Caught(receiver))
    }

    /// The next signal.
    pub async fn next(&mut self) -> i32 {
        match self.0.recv().await {
            Some(number) => number,
            None => std::future::pending().await,
        }
    }

    /// Passes signals on to `process` for ever.
    pub async fn forward(&mut self, agent: &Agent, process: &ProcessId) {
        loop {
            let signal = self.next().await;
            let call = Call::Signal { process: process.clone(), signal, all: false };
            if let Err(error) = agent.order(call).await {
                tracing::debug!("signal {signal} was not delivered: {error}");
            }
        }
    }
}

/// Keeps the size of the process's terminal that of `terminal`, for ever.
pub async fn follow_size(agent: &Agent, process: &ProcessId, terminal: Option<&RawTerminal>) {
    let Some(terminal) = terminal else { return std::future::pending().await };
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return std::future::pending().await;
    };
    loop {
        if let Some((rows, columns)) = terminal.size() {
            let call = Call::Resize { process: process.clone(), rows, columns };
            if let Err(error) = agent.order(call).await {
                tracing::debug!("the terminal was not resized: {error}");
            }
        }
        if changes.recv().await.is_none() {
            return std::future::pending().await;
        }
    }
}
