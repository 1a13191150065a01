//! OCI images for bulkhead: pulled from registries or loaded from archives
//! into a content store, with each layer unpacked once into a directory that
//! overlayfs can stack.

pub mod archive;
mod digest;
mod manifest;
mod platform;
mod progress;
mod reference;
pub mod registry;
mod store;
pub mod unpack;

pub use archive::{ArchiveError, LoadOptions, LoadedImage};
pub use digest::{Digest, DigestError};
pub use manifest::ManifestError;
pub use progress::{Event, Phase, Progress, SharedProgress};
pub use reference::{DEFAULT_REGISTRY, Reference, ReferenceError};
pub use registry::{Credentials, PullOptions, RegistryError};
pub use store::{DEFAULT_ROOT, Image, Store, StoreError};
