//! Readers that count, hash and stop.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::{Cancel, Limits, Refusal};
use crate::digest::Digest;

/// Bytes read from the blob, shared between both ends of the decoder.
pub(super) type Counter = Rc<Cell<u64>>;

/// Counts what is read from the blob.
pub(super) struct Counted<R> {
    inner: R,
    count: Counter,
}

impl<R> Counted<R> {
    pub(super) fn new(inner: R, count: Counter) -> Self {
        Self { inner, count }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.set(self.count.get() + n as u64);
        Ok(n)
    }
}

/// Why a [`Meter`] stopped.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    Cancelled,
    Refused(Refusal),
}

/// Hashes the uncompressed stream and enforces the limits on it.
pub(super) struct Meter<'a, R> {
    inner: R,
    hash: Sha256,
    total: u64,
    blob: Counter,
    reported: u64,
    limits: Limits,
    cancel: Cancel,
    seen: &'a dyn Fn(u64),
    verdict: Option<Verdict>,
}

/// Progress is told at this distance, in bytes of the blob.
const REPORT_EVERY: u64 = 256 << 10;

impl<'a, R: Read> Meter<'a, R> {
    pub(super) fn new(
        inner: R,
        blob: Counter,
        limits: Limits,
        cancel: Cancel,
        seen: &'a dyn Fn(u64),
    ) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            total: 0,
            blob,
            reported: 0,
            limits,
            cancel,
            seen,
            verdict: None,
        }
    }

    /// What stopped the stream, if the meter did.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.clone()
    }

    /// sha256 of what was read.
    pub(super) fn digest(self) -> Digest {
        (self.seen)(self.blob.get());
        Digest::from_hash(&self.hash.finalize().into())
    }

    fn judge(&self) -> Option<Verdict> {
        if self.cancel.is_cancelled() {
            return Some(Verdict::Cancelled);
        }
        let limits = &self.limits;
        if self.total > limits.max_bytes {
            return Some(Verdict::Refused(Refusal::StreamTooLong(limits.max_bytes)));
        }
        let allowed = self.blob.get().saturating_mul(limits.max_ratio);
        if self.total > limits.ratio_from && self.total > allowed {
            return Some(Verdict::Refused(Refusal::Bomb(limits.max_ratio)));
        }
        None
    }
}

impl<R: Read> Read for Meter<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.total += n as u64;
        let blob = self.blob.get();
        if blob - self.reported >= REPORT_EVERY {
            self.reported = blob;
            (self.seen)(blob);
        }
        self.verdict = self.judge();
        match self.verdict {
            Some(_) => Err(io::Error::other("stopped by the meter")),
            None => Ok(n),
        }
    }
}
