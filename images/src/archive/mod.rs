//! Images from files: OCI layouts (directory or tar), the output of
//! `docker save` in its old and new form, and plain root file systems.

mod docker;
mod error;
mod oci;
mod source;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use oci_spec::image::{Config, ConfigBuilder, ImageConfigurationBuilder, Os, RootFsBuilder};

use crate::digest::Digest;
use crate::manifest::{self, Layer, ManifestError, Part};
use crate::platform;
use crate::progress::{Event, Phase, Progress};
use crate::reference::Reference;
use crate::store::{Image, Lease, Record, Store, StoreError};
use crate::unpack::{Cancel, Compression, Limits, decoder, sniff};
use source::{Content, Source};

pub use error::ArchiveError;

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// A name for the image instead of those in the archive, which must then
    /// hold a single image.
    pub name: Option<Reference>,
    /// Bounds on each layer, and on a compressed archive as a whole.
    pub limits: Limits,
    /// Stops the load from another thread.
    pub cancel: Cancel,
}

/// An image that was loaded.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// The image, with all the names that it has by now.
    pub image: Image,
    /// The names that this load gave it.
    pub names: Vec<Reference>,
}

/// One load under way.
struct Loader<'a> {
    store: &'a Store,
    source: Source,
    lease: Lease,
    options: &'a LoadOptions,
    progress: &'a dyn Progress,
}

/// An image whose blobs are in the store and whose layers are not yet.
struct Loaded {
    config: Vec<u8>,
    config_digest: Digest,
    manifest: Digest,
    /// Manifest and indexes on the way to it.
    documents: Vec<Digest>,
    blobs: Vec<Part>,
    names: Vec<Reference>,
}

impl Store {
    /// Loads all images for this machine from an OCI layout or a docker
    /// archive; tar files may be compressed with gzip or zstd, or come from a
    /// pipe. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`]; nothing of the archive stays in the store then.
    pub fn load(
        &self,
        path: &Path,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<LoadedImage>, ArchiveError> {
        let result = self.load_leased(path, options, progress);
        if result.is_err() {
            self.collect()?;
        }
        result
    }

    fn load_leased(
        &self,
        path: &Path,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<LoadedImage>, ArchiveError> {
        let mut loader = Loader {
            store: self,
            source: Source::open(path, self, &options.limits)?,
            lease: self.lease()?,
            options,
            progress,
        };
        let mut loaded = match loader.source.get("index.json")? {
            Some(index) => loader.oci(index)?,
            None => match loader.source.get("manifest.json")? {
                Some(list) => loader.docker(list)?,
                None => {
                    let path = path.to_owned();
                    return Err(ArchiveError::NoImage { path });
                }
            },
        };
        if let Some(name) = &options.name {
            match loaded.as_mut_slice() {
                [only] => only.names = vec![name.clone()],
                many => {
                    return Err(ArchiveError::OneName { path: path.to_owned(), count: many.len() });
                }
            }
        }
        let images = loaded.into_iter().map(|image| loader.finish(image));
        images.collect()
    }

    /// Makes an image of one layer from a tar of a root file system, as
    /// `docker import` does. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`]; nothing stays in the store then.
    pub fn import_rootfs(
        &self,
        path: &Path,
        name: &Reference,
        config: Option<Config>,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ArchiveError> {
        let result = self.import_leased(path, name, config, options, progress);
        if result.is_err() {
            self.collect()?;
        }
        result
    }

    fn import_leased(
        &self,
        path: &Path,
        name: &Reference,
        config: Option<Config>,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ArchiveError> {
        let unreadable = |source| ArchiveError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let mut lease = self.lease()?;
        let (blob, size) =
            self.import_blob(file, &options.cancel, &|_| {}, |digest| lease.extend([digest]))?;
        let diff_id = self.diff_id(&blob, &options.limits)?;
        let text = import_config(&diff_id, config).map_err(|source| ArchiveError::Json {
            path: path.to_owned(),
            name: "configuration".to_owned(),
            source,
        })?;
        let config_digest = Digest::of(&text);
        let blobs = vec![Part { digest: blob, size }];
        let manifest = oci_manifest(self, &config_digest, text.len() as u64, &blobs)?;
        let manifest_digest = Digest::of(&manifest);
        lease.extend([&config_digest, &manifest_digest])?;
        self.put_blob(&text)?;
        self.put_blob(&manifest)?;
        let image = Loaded {
            config: text,
            config_digest,
            documents: vec![manifest_digest.clone()],
            manifest: manifest_digest,
            blobs,
            names: vec![name.clone()],
        };
        self.finish_image(path, image, &mut lease, options, progress)
    }

    /// sha256 of what a blob uncompresses to.
    fn diff_id(&self, blob: &Digest, limits: &Limits) -> Result<Digest, StoreError> {
        let path = self.blob_path(blob);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let plain =
            decoder(file).map_err(|source| StoreError::Unpack { blob: blob.clone(), source })?;
        let bounded = plain.take(limits.max_bytes);
        let (diff_id, _) =
            Digest::of_reader(bounded).map_err(StoreError::io("uncompress", &path))?;
        Ok(diff_id)
    }

    /// Unpacks the layers, several at once, and enters the image.
    fn finish_image(
        &self,
        path: &Path,
        image: Loaded,
        lease: &mut Lease,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Image, ArchiveError> {
        let layers = manifest::layers(&image.config, &image.blobs)
            .map_err(|source| unusable(path, source))?;
        lease.extend(layers.iter().map(|layer| &layer.diff_id))?;
        let size = self.unpack_all(&layers, options, progress)?;
        let blobs = image.blobs.iter().map(|part| part.digest.clone());
        let blobs = blobs.chain(image.documents.iter().cloned());
        let pins = image
            .names
            .iter()
            .flat_map(|name| image.documents.iter().map(|digest| name.pinned(digest)));
        let record = Record {
            id: image.config_digest.clone(),
            manifest: image.manifest.clone(),
            references: image
                .names
                .iter()
                .map(|name| name.canonical().to_string())
                .collect::<BTreeSet<_>>(),
            repo_digests: pins.map(|pin| pin.to_string()).collect(),
            blobs: blobs.chain([image.config_digest]).collect(),
            layers: layers.into_iter().map(|layer| layer.diff_id).collect(),
            size,
        };
        Ok(self.commit(record)?)
    }

    fn unpack_all(
        &self,
        layers: &[Layer],
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<u64, StoreError> {
        let unique: HashMap<&Digest, &Layer> =
            layers.iter().map(|layer| (&layer.diff_id, layer)).collect();
        let queue: Mutex<Vec<&Layer>> = Mutex::new(unique.into_values().collect());
        let next = || queue.lock().unwrap_or_else(|broken| broken.into_inner()).pop();
        let worker = || -> Result<Vec<(Digest, u64)>, StoreError> {
            let mut sizes = Vec::new();
            while let Some(Layer { blob, diff_id }) = next() {
                let (limits, cancel) = (&options.limits, &options.cancel);
                let meta = self.ensure_layer(&blob.digest, diff_id, limits, cancel, progress)?;
                sizes.push((diff_id.clone(), meta.bytes));
            }
            Ok(sizes)
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let sizes = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads.min(layers.len())).map(|_| scope.spawn(worker)).collect();
            let results = workers.into_iter().map(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect::<Result<Vec<_>, _>>()
        })?;
        let sizes: HashMap<Digest, u64> = sizes.into_iter().flatten().collect();
        Ok(layers.iter().map(|layer| sizes[&layer.diff_id]).sum())
    }
}

impl Loader<'_> {
    fn finish(&mut self, image: Loaded) -> Result<LoadedImage, ArchiveError> {
        let path = self.source.path().to_owned();
        let names = image.names.iter().map(Reference::canonical).collect();
        let (lease, options) = (&mut self.lease, self.options);
        let image = self.store.finish_image(&path, image, lease, options, self.progress)?;
        Ok(LoadedImage { image, names })
    }

    /// The document `name` is the reason.
    fn unusable(&self, name: &str, source: ManifestError) -> ArchiveError {
        ArchiveError::Document { path: self.source.path().to_owned(), name: name.into(), source }
    }

    /// Copies a file of the archive into the store. `expected` is what its
    /// content must hash to, if that is known.
    fn copy(
        &mut self,
        content: Content,
        expected: Option<&Digest>,
        item: &str,
    ) -> Result<Part, ArchiveError> {
        let (progress, phase) = (self.progress, Phase::Copy);
        let end = |cached| {
            progress.event(Event::End { item, phase, cached });
        };
        if let Some(digest) = expected {
            self.lease.extend([digest])?;
            if let Some(size) = self.store.blob_size(digest) {
                end(true);
                return Ok(Part { digest: digest.clone(), size });
            }
        }
        progress.event(Event::Begin { item, phase, total: content.size });
        let seen = |done| progress.event(Event::Advance { item, phase, done });
        let lease = &mut self.lease;
        let (digest, size) =
            self.store.import_blob(content.reader, &self.options.cancel, &seen, |actual| {
                match expected {
                    Some(expected) if expected != actual => Err(StoreError::Corrupted {
                        expected: expected.clone(),
                        actual: actual.clone(),
                    }),
                    _ => lease.extend([actual]),
                }
            })?;
        end(false);
        Ok(Part { digest, size })
    }

    /// Puts a small document into the store.
    fn put(&mut self, text: &[u8]) -> Result<Digest, ArchiveError> {
        self.lease.extend([&Digest::of(text)])?;
        Ok(self.store.put_blob(text)?)
    }
}

fn unusable(path: &Path, source: ManifestError) -> ArchiveError {
    ArchiveError::Manifest { path: path.to_owned(), source }
}

/// The manifest of an image that came without one.
fn oci_manifest(
    store: &Store,
    config: &Digest,
    config_size: u64,
    blobs: &[Part],
) -> Result<Vec<u8>, StoreError> {
    let mut layers = Vec::new();
    for part in blobs {
        let compression = compression(store, &part.digest)?;
        layers.push(serde_json::json!({
            "mediaType": compression.layer_media_type(),
            "digest": part.digest.to_string(),
            "size": part.size,
        }));
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": config_size,
        },
        "layers": layers,
    });
    Ok(manifest.to_string().into_bytes())
}

fn compression(store: &Store, blob: &Digest) -> Result<Compression, StoreError> {
    let path = store.blob_path(blob);
    let read = || -> std::io::Result<Vec<u8>> {
        let mut magic = Vec::new();
        File::open(&path)?.take(8).read_to_end(&mut magic)?;
        Ok(magic)
    };
    let magic = read().map_err(StoreError::io("read", &path))?;
    sniff(&magic).map_err(|source| StoreError::Unpack { blob: blob.clone(), source })
}

fn import_config(diff_id: &Digest, config: Option<Config>) -> serde_json::Result<Vec<u8>> {
    let bad = <serde_json::Error as serde::ser::Error>::custom::<oci_spec::OciSpecError>;
    let config = match config {
        Some(config) => config,
        None => ConfigBuilder::default().build().map_err(bad)?,
    };
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(vec![diff_id.to_string()])
        .build()
        .map_err(bad)?;
    let config = ImageConfigurationBuilder::default()
        .architecture(platform::host_arch())
        .os(Os::Linux)
        .config(config)
        .rootfs(rootfs)
        .build()
        .map_err(bad)?;
    serde_json::to_vec(&config)
}
