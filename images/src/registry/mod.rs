//! Pulling images from registries (OCI distribution and Docker's v2).

mod auth;
mod download;
mod error;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::manifest::{self, Document, Layer, Manifest, ManifestError};
use crate::progress::{Event, SharedProgress};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::store::{Image, LayerMeta, Lease, Record, Store, StoreError};
use crate::unpack::{Cancel, Limits};

pub use auth::Credentials;
pub use error::RegistryError;

/// What registries may send for a name.
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// An index may point to an index, but not for ever.
const MAX_NESTING: usize = 4;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Who to log in as.
    pub credentials: Credentials,
    /// Bounds on each layer.
    pub limits: Limits,
    /// Blobs fetched at once.
    pub downloads: NonZeroUsize,
    /// Layers unpacked at once; by default the number of processors.
    pub unpacks: NonZeroUsize,
    /// Give up on a connection that is silent for so long.
    pub timeout: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            limits: Limits::default(),
            downloads: const { NonZeroUsize::new(4).unwrap() },
            unpacks: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            timeout: Duration::from_secs(60),
        }
    }
}

/// One pull under way.
struct Session {
    store: Store,
    image: Reference,
    client: Client,
    repository: oci_client::Reference,
    progress: SharedProgress,
    options: PullOptions,
    /// All blobs of the manifest, once it is known.
    parts: Vec<Digest>,
}

/// Stops the unpacking threads when the pull is dropped or fails.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Store {
    /// Pulls an image: what the store lacks is downloaded (a broken download
    /// is resumed) and unpacked. Dropping the future stops it cleanly.
    ///
    /// Needs a tokio runtime with time and I/O enabled.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]; the store is as before, apart from blobs that a
    /// later attempt can use.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: PullOptions,
        progress: SharedProgress,
    ) -> Result<Image, RegistryError> {
        let mut session = Session {
            parts: Vec::new(),
            store: self.clone(),
            image: reference.clone(),
            client: client(reference, &options)?,
            repository: client_reference(reference),
            progress,
            options,
        };
        let result = session.run().await;
        if let Err(error) = &result
            && !error.can_go_on_later()
        {
            self.discard_partials(&session.parts)?;
            self.collect()?;
        }
        result
    }
}

impl Session {
    async fn run(&mut self) -> Result<Image, RegistryError> {
        let mut lease = self.store.lease()?;
        let auth = self.options.credentials.clone().find(&self.image).await?;
        self.client
            .auth(&self.repository, &auth, RegistryOperation::Pull)
            .await
            .map_err(|error| RegistryError::from_client(error, &self.image, "logging in"))?;
        self.client.store_auth_if_needed(self.repository.resolve_registry(), &auth).await;

        let (documents, manifest) = self.manifest().await?;
        let digests: Vec<Digest> = documents.iter().map(|text| Digest::of(text)).collect();
        let parts = manifest.layers.iter().chain([&manifest.config]);
        self.parts = parts.map(|part| part.digest.clone()).collect();
        lease.extend(digests.iter().chain(&self.parts))?;
        for text in &documents {
            self.store.put_blob(text)?;
        }
        manifest::check_size("image configuration", manifest.config.size)
            .map_err(|source| self.unusable(source))?;
        self.download(&manifest.config).await?;
        let config = self.store.read_blob(&manifest.config.digest)?;
        let layers =
            manifest::layers(&config, &manifest.layers).map_err(|source| self.unusable(source))?;
        let size = self.layers(&mut lease, &layers).await?;

        let record = self.record(&digests, &manifest, &layers, size);
        Ok(self.store.commit(record)?)
    }

    fn unusable(&self, source: ManifestError) -> RegistryError {
        RegistryError::Manifest { image: self.image.familiar(), source }
    }

    /// The manifest for this machine, and all documents on the way to it.
    async fn manifest(&self) -> Result<(Vec<Vec<u8>>, Manifest), RegistryError> {
        let mut documents = Vec::new();
        let mut wanted = self.image.canonical();
        for _ in 0..MAX_NESTING {
            let (text, _) = self
                .client
                .pull_manifest_raw(
                    &client_reference(&wanted),
                    // Ignored: stored by `auth` before.
                    &oci_client::secrets::RegistryAuth::Anonymous,
                    ACCEPTED,
                )
                .await
                .map_err(|error| {
                    RegistryError::from_client(error, &self.image, "sending the manifest")
                })?;
            let text = text.to_vec();
            manifest::check_size("manifest", text.len() as u64)
                .map_err(|source| self.unusable(source))?;
            let actual = Digest::of(&text);
            if wanted.digest().is_some_and(|digest| *digest != actual) {
                return Err(RegistryError::WrongManifest {
                    image: wanted.familiar(),
                    actual: actual.to_string(),
                });
            }
            let document = manifest::parse(&text).map_err(|source| self.unusable(source))?;
            documents.push(text);
            match document {
                Document::Manifest(manifest) => {
                    let note = format!("{}: manifest {actual}", self.image.familiar());
                    self.progress.event(Event::Note(&note));
                    return Ok((documents, manifest));
                }
                Document::Index(entries) => {
                    let chosen = manifest::choose(&entries).and_then(manifest::part);
                    let chosen = chosen.map_err(|source| self.unusable(source))?;
                    wanted = self.image.pinned(&chosen.digest);
                }
            }
        }
        Err(self.unusable(ManifestError::NotAnImage("index of indexes".to_owned())))
    }

    /// Downloads and unpacks all layers, several at once. Returns the bytes
    /// of all of them.
    async fn layers(&self, lease: &mut Lease, layers: &[Layer]) -> Result<u64, RegistryError> {
        lease.extend(layers.iter().map(|layer| &layer.diff_id))?;
        let cancel = CancelOnDrop(Cancel::default());
        let downloads = Semaphore::new(self.options.downloads.get());
        let unpacks = Semaphore::new(self.options.unpacks.get());
        // The same layer may occur twice.
        let unique: HashMap<&Digest, &Layer> =
            layers.iter().map(|layer| (&layer.diff_id, layer)).collect();
        let work = unique.into_values().map(|layer| async {
            let meta = self.layer(layer, &cancel.0, &downloads, &unpacks).await?;
            Ok::<_, RegistryError>((layer.diff_id.clone(), meta.bytes))
        });
        let sizes: HashMap<Digest, u64> = try_join_all(work).await?.into_iter().collect();
        Ok(layers.iter().map(|layer| sizes[&layer.diff_id]).sum())
    }

    async fn layer(
        &self,
        layer: &Layer,
        cancel: &Cancel,
        downloads: &Semaphore,
        unpacks: &Semaphore,
    ) -> Result<LayerMeta, RegistryError> {
        // Unpacked before, from whatever blob: nothing to fetch.
        if self.store.layer(&layer.diff_id)?.is_none() {
            let _permit = downloads.acquire().await;
            self.download(&layer.blob).await?;
        }
        let _permit = unpacks.acquire().await;
        let (store, layer) = (self.store.clone(), layer.clone());
        let (limits, cancel) = (self.options.limits.clone(), cancel.clone());
        let progress = Arc::clone(&self.progress);
        let unpacking = tokio::task::spawn_blocking(move || {
            let Layer { blob, diff_id } = layer;
            store.ensure_layer(&blob.digest, &diff_id, &limits, &cancel, &*progress)
        });
        match unpacking.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(StoreError::Cancelled.into()),
        }
    }

    fn record(
        &self,
        documents: &[Digest],
        manifest: &Manifest,
        layers: &[Layer],
        size: u64,
    ) -> Record {
        let pin = |digest: &Digest| self.image.pinned(digest).to_string();
        Record {
            id: manifest.config.digest.clone(),
            manifest: documents.last().cloned().unwrap_or_else(|| manifest.config.digest.clone()),
            references: BTreeSet::from([self.image.canonical().to_string()]),
            repo_digests: documents.iter().map(pin).collect(),
            blobs: self.parts.iter().chain(documents).cloned().collect(),
            layers: layers.iter().map(|layer| layer.diff_id.clone()).collect(),
            size,
        }
    }
}

fn client(image: &Reference, options: &PullOptions) -> Result<Client, RegistryError> {
    // Fails if there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = ClientConfig {
        read_timeout: Some(options.timeout),
        connect_timeout: Some(options.timeout.min(Duration::from_secs(20))),
        user_agent: concat!("bulkhead/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    if image.is_local() {
        config.protocol = ClientProtocol::Http;
        // A proxy of the environment cannot reach this machine's loopback.
        // Any explicit proxy turns it off, and the exception turns off this
        // one in its turn.
        config.http_proxy = Some("http://127.0.0.1:9".to_owned());
        config.no_proxy = Some("localhost,127.0.0.0/8,::1".to_owned());
    }
    Client::try_from(config)
        .map_err(|error| RegistryError::from_client(error, image, "setting up the client"))
}

fn client_reference(image: &Reference) -> oci_client::Reference {
    let registry = match image.registry() {
        // The client knows where Docker's registry really is.
        DEFAULT_REGISTRY => "docker.io".to_owned(),
        other => other.to_owned(),
    };
    let repository = image.repository().to_owned();
    match image.digest() {
        Some(digest) => {
            oci_client::Reference::with_digest(registry, repository, digest.to_string())
        }
        None => {
            let tag = image.tag().unwrap_or("latest").to_owned();
            oci_client::Reference::with_tag(registry, repository, tag)
        }
    }
}
