//! Why a pull failed, in words for the person who asked for it.

use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::reference::Reference;
use crate::store::StoreError;

/// A pull that failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry does not know the image, or does not say so to us.
    #[error(
        "{image} is not in the registry, or is private: check the name and tag, or log in with `docker login {registry}`"
    )]
    NotFound {
        /// The image's name.
        image: String,
        /// The registry.
        registry: String,
    },
    /// Credentials are missing or wrong.
    #[error("{registry} denies access to {image}: log in with `docker login {registry}`")]
    Denied {
        /// The image's name.
        image: String,
        /// The registry.
        registry: String,
    },
    /// Too many pulls.
    #[error("{registry} limits the number of pulls: try again later or log in")]
    RateLimited {
        /// The registry.
        registry: String,
    },
    /// No connection.
    #[error(
        "cannot reach the registry {registry}: check the name, the network and the proxy settings"
    )]
    Unreachable {
        /// The registry.
        registry: String,
        /// What the network said.
        source: Box<OciDistributionError>,
    },
    /// An answer that makes no sense.
    #[error("the registry {registry} failed while {doing}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was asked for.
        doing: String,
        /// What the client says.
        source: Box<OciDistributionError>,
    },
    /// A download broke off, again and again.
    #[error(
        "the download of blob {digest} from {registry} broke off {tries} times at {done} of {total} bytes; pull again to go on from there"
    )]
    Interrupted {
        /// The blob.
        digest: Digest,
        /// The registry.
        registry: String,
        /// How often it was tried.
        tries: u32,
        /// Bytes on disk.
        done: u64,
        /// Bytes of the whole blob.
        total: u64,
        /// The last failure.
        source: std::io::Error,
    },
    /// The registry sent something else than it announced.
    #[error(
        "blob {expected} from {registry} is corrupted: its content has digest {actual}; it was thrown away"
    )]
    Corrupted {
        /// The announced digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
        /// The registry.
        registry: String,
    },
    /// The registry sent more than it announced.
    #[error(
        "blob {digest} from {registry} is longer than the {announced} bytes announced; it was thrown away"
    )]
    TooLong {
        /// The blob.
        digest: Digest,
        /// The registry.
        registry: String,
        /// Bytes in the manifest.
        announced: u64,
    },
    /// The manifest under a pinned digest is another one.
    #[error("the manifest of {image} does not have the digest it is asked for by: it has {actual}")]
    WrongManifest {
        /// The image's name.
        image: String,
        /// The digest of what came.
        actual: String,
    },
    /// Credentials are configured but cannot be used.
    #[error("cannot get the credentials for {registry} from docker's configuration: {why}")]
    Credentials {
        /// The registry.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// What was pulled cannot be run here.
    #[error("cannot use {image}")]
    Manifest {
        /// The image's name.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// Translates the client's error.
    pub(super) fn from_client(error: OciDistributionError, image: &Reference, doing: &str) -> Self {
        use OciDistributionError as E;
        let registry = image.registry().to_owned();
        let name = image.familiar();
        let source = Box::new(error);
        match *source {
            E::RegistryError { ref envelope, .. } => {
                for error in &envelope.errors {
                    match error.code {
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::ManifestBlobUnknown
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound => {
                            return Self::NotFound { image: name, registry };
                        }
                        OciErrorCode::Unauthorized | OciErrorCode::Denied => {
                            return Self::Denied { image: name, registry };
                        }
                        OciErrorCode::Toomanyrequests => return Self::RateLimited { registry },
                        _ => {}
                    }
                }
            }
            E::ServerError { code: 404, .. } | E::ImageManifestNotFoundError(_) => {
                return Self::NotFound { image: name, registry };
            }
            E::UnauthorizedError { .. }
            | E::AuthenticationFailure(_)
            | E::ServerError { code: 403, .. } => {
                return Self::Denied { image: name, registry };
            }
            E::ServerError { code: 429, .. } => return Self::RateLimited { registry },
            E::DigestError(oci_client::errors::DigestError::VerificationError {
                ref actual,
                ..
            }) => {
                return Self::WrongManifest { image: name, actual: actual.clone() };
            }
            E::RequestError(ref request) if request.is_connect() || request.is_timeout() => {
                return Self::Unreachable { registry, source };
            }
            _ => {}
        }
        Self::Protocol { registry, doing: doing.to_owned(), source }
    }

    /// Whether what is in the store by now helps the next attempt.
    pub(super) fn can_go_on_later(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::RateLimited { .. }
            | Self::Protocol { .. } => true,
            Self::Store(error) => {
                !matches!(error, StoreError::Unpack { .. } | StoreError::WrongDiffId { .. })
            }
            _ => false,
        }
    }
}
