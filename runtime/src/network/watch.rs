//! The namespace, watched while the machine runs.
//!
//! ```text
//! news ----> 20 ms later, and 200 ms after the last time at the earliest: settle
//! ask  ----> settle at once, and answer
//! settle fails -> again, after a second, two, ... a minute; a second after news
//! ```
//!
//! However many changes there are, the work is one look at the namespace for each interval.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::NetworkError;
use super::keeper::{Keeper, Machine};
use crate::container::chain;
use crate::sys::descriptors::watch_fd;

/// From the first of some changes to the look at them: they come in groups.
const GROUP: Duration = Duration::from_millis(20);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(200);
/// From a failure to the next try, the first time and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Messages that are read at a time; nothing is taken from them.
const MESSAGES: usize = 4096;

type Answer = oneshot::Sender<Result<(), String>>;

/// The one who watches. Dropped, no interface is redirected any more.
#[derive(Debug)]
pub(crate) struct Watch {
    task: tokio::task::JoinHandle<()>,
    asks: mpsc::Sender<Answer>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The way to ask for a look.
#[derive(Debug, Clone)]
pub(crate) struct Asks(mpsc::Sender<Answer>);

impl Asks {
    /// Waits until the guest has what the namespace has now.
    pub(crate) async fn settle(&self) -> Result<(), NetworkError> {
        let gone = || NetworkError::Settle("nobody watches the network namespace any more".into());
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(NetworkError::Settle)
    }
}

impl Watch {
    /// Watches `keeper`'s namespace, of which `news` tells, for `machine`.
    pub(crate) fn begin(keeper: Keeper, machine: Machine, news: OwnedFd) -> std::io::Result<Watch> {
        let (asks, inbox) = mpsc::channel(8);
        let watcher = Watcher { keeper, machine, news: watch_fd(news)?, said: None };
        Ok(Watch { task: tokio::spawn(watcher.run(inbox)), asks })
    }

    /// Ends, and returns when no interface is redirected any more.
    pub(crate) async fn end(mut self) {
        self.task.abort();
        // Its error says that it was aborted.
        let _ = (&mut self.task).await;
    }

    pub(crate) fn asks(&self) -> Asks {
        Asks(self.asks.clone())
    }
}

struct Watcher {
    keeper: Keeper,
    machine: Machine,
    news: AsyncFd<OwnedFd>,
    /// What was said last of a failure.
    said: Option<String>,
}

impl Watcher {
    async fn run(mut self, mut inbox: mpsc::Receiver<Answer>) {
        // When to look again.
        let mut due: Option<Instant> = None;
        let mut earliest = Instant::now();
        let mut retry = RETRY.0;
        // Whether it is a failure after which we look again.
        let mut failed = false;
        loop {
            let asked = tokio::select! {
                biased;
                ask = inbox.recv() => match ask {
                    Some(ask) => Some(ask),
                    None => return,
                },
                () = sleep_until(due.unwrap_or(earliest)), if due.is_some() => None,
                ready = self.news.readable(), if due.is_none() || failed => {
                    if ready.is_err() {
                        return;
                    }
                    let now = Instant::now();
                    due = Some(match due {
                        // What failed may succeed now.
                        Some(due) => due.min(now + RETRY.0),
                        None => earliest.max(now + GROUP),
                    });
                    failed = false;
                    continue;
                }
            };
            // What comes from here on is news again.
            self.drain();
            let outcome = self.keeper.settle(&self.machine).await.map_err(|error| chain(&error));
            earliest = Instant::now() + INTERVAL;
            (due, failed) = (None, outcome.is_err());
            match &outcome {
                Ok(()) => (retry, self.said) = (RETRY.0, None),
                Err(error) => {
                    self.say(error);
                    due = Some(Instant::now() + retry);
                    retry = RETRY.1.min(retry * 2);
                }
            }
            if let Some(asked) = asked {
                let _ = asked.send(outcome);
            }
        }
    }

    /// Once, however often it happens.
    fn say(&mut self, error: &str) {
        if self.said.as_deref() != Some(error) {
            tracing::warn!("the machine's network is not that of its namespace: {error}");
            self.said = Some(error.to_owned());
        }
    }

    fn drain(&self) {
        let mut buffer = [0; 64];
        for _ in 0..MESSAGES {
            let received = self.news.try_io(Interest::READABLE, |socket| {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    // Some were lost, and are news all the same.
                    Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
                    Err(errno) => Err(errno.into()),
                }
            });
            if received.is_err() {
                return;
            }
        }
    }
}
