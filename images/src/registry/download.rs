//! One blob: found in the store, resumed or fetched, verified, put in place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::{RegistryError, Session};
use crate::digest::Digest;
use crate::manifest::Part;
use crate::progress::{Event, Phase};
use crate::store::{KeyLock, LOCK_POLL, StoreError};

const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Writes to disk are gathered to this size, in bytes.
const WRITE_BUFFER: usize = 512 << 10;

/// How one attempt ended, other than well.
enum Broken {
    /// Worth another try, from where it broke off.
    Off(io::Error),
    /// What was there from earlier was bad; worth a try from the start.
    OldPartial,
    Final(RegistryError),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Final(error.into())
    }
}

impl Session {
    /// Gets `part` into the store.
    pub(super) async fn download(&self, part: &Part) -> Result<(), RegistryError> {
        let item = part.digest.to_string();
        let phase = Phase::Download;
        let end = |cached| {
            self.progress.event(Event::End { item: &item, phase, cached });
        };
        let lock_path = self.store.blob_lock_path(&part.digest);
        let _lock = loop {
            if let Some(lock) = KeyLock::try_acquire(&lock_path)? {
                break lock;
            }
            // Another process or layer fetches the same blob.
            tokio::time::sleep(LOCK_POLL).await;
        };
        if self.store.blob_size(&part.digest).is_some() {
            end(true);
            return Ok(());
        }
        self.progress.event(Event::Begin { item: &item, phase, total: part.size });
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            match self.attempt(part, &item).await {
                Ok(()) => break,
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::OldPartial) => continue,
                Err(Broken::Off(source)) if tries >= TRIES => {
                    return Err(self.interrupted(part, tries, source));
                }
                Err(Broken::Off(error)) => {
                    tracing::debug!(%error, blob = %item, tries, "download broke off");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        end(false);
        Ok(())
    }

    fn interrupted(&self, part: &Part, tries: u32, source: io::Error) -> RegistryError {
        let path = self.store.partial_path(&part.digest);
        RegistryError::Interrupted {
            digest: part.digest.clone(),
            registry: self.image.registry().to_owned(),
            tries,
            done: std::fs::metadata(path).map_or(0, |meta| meta.len()),
            total: part.size,
            source,
        }
    }

    async fn attempt(&self, part: &Part, item: &str) -> Result<(), Broken> {
        let path = self.store.partial_path(&part.digest);
        let (file, mut hash, mut have) = {
            let (path, size) = (path.clone(), part.size);
            blocking(move || open_partial(&path, size)).await?
        };
        let resumed = have > 0;
        let mut file =
            tokio::io::BufWriter::with_capacity(WRITE_BUFFER, tokio::fs::File::from_std(file));
        if have < part.size {
            let result = self.receive(part, item, &path, &mut file, &mut hash, &mut have).await;
            // Also what a broken download got so far.
            let flushed = file.flush().await;
            result?;
            flushed.map_err(StoreError::io("write", &path))?;
        }
        let actual = Digest::from_hash(&hash.finalize().into());
        if actual != part.digest {
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            return Err(match resumed {
                true => Broken::OldPartial,
                false => Broken::Final(RegistryError::Corrupted {
                    expected: part.digest.clone(),
                    actual,
                    registry: self.image.registry().to_owned(),
                }),
            });
        }
        let file = file.into_inner().into_std().await;
        let (store, digest) = (self.store.clone(), actual);
        blocking(move || store.place_blob(&file, &path, &digest)).await?;
        Ok(())
    }

    /// Appends to the partial file until the blob is whole.
    async fn receive(
        &self,
        part: &Part,
        item: &str,
        path: &Path,
        file: &mut tokio::io::BufWriter<tokio::fs::File>,
        hash: &mut Sha256,
        have: &mut u64,
    ) -> Result<(), Broken> {
        let answer =
            self.client.pull_blob_stream_partial(&self.repository, item, *have, None).await;
        let mut stream = match answer.map_err(|error| self.classify(error, item))? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                // The registry knows no ranges: from the start, then.
                *have = 0;
                *hash = Sha256::new();
                let start = async {
                    file.seek(SeekFrom::Start(0)).await?;
                    file.get_ref().set_len(0).await
                };
                start.await.map_err(StoreError::io("write", path))?;
                stream
            }
        };
        while *have < part.size {
            let chunk = match stream.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(Broken::Off(error)),
                None => return Err(Broken::Off(io::ErrorKind::UnexpectedEof.into())),
            };
            *have += chunk.len() as u64;
            if *have > part.size {
                std::fs::remove_file(path).map_err(StoreError::io("remove", path))?;
                return Err(Broken::Final(RegistryError::TooLong {
                    digest: part.digest.clone(),
                    registry: self.image.registry().to_owned(),
                    announced: part.size,
                }));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(StoreError::io("write", path))?;
            self.progress.event(Event::Advance { item, phase: Phase::Download, done: *have });
        }
        Ok(())
    }

    fn classify(&self, error: oci_client::errors::OciDistributionError, item: &str) -> Broken {
        use oci_client::errors::OciDistributionError as E;
        match error {
            E::RequestError(error) => Broken::Off(io::Error::other(error)),
            E::IoError(error) => Broken::Off(error),
            E::ServerError { code, .. } if code >= 500 => Broken::Off(io::Error::other(error)),
            other => Broken::Final(RegistryError::from_client(
                other,
                &self.image,
                &format!("sending blob {item}"),
            )),
        }
    }
}

/// Opens what there is of a blob and hashes it; starts anew if it is longer
/// than the blob.
fn open_partial(path: &Path, size: u64) -> Result<(File, Sha256, u64), StoreError> {
    let open = || -> io::Result<(File, Sha256, u64)> {
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() > size {
            file.set_len(0)?;
        }
        let mut hash = Sha256::new();
        let mut have = 0;
        let mut buf = vec![0; 256 << 10];
        loop {
            match file.read(&mut buf)? {
                0 => break,
                n => {
                    hash.update(&buf[..n]);
                    have += n as u64;
                }
            }
        }
        file.seek(SeekFrom::End(0))?;
        Ok((file, hash, have))
    };
    open().map_err(StoreError::io("open", path))
}

/// Disk work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is shutting down, or the work panicked.
        Err(_) => Err(StoreError::Cancelled),
    }
}
