//! Credentials: docker's own `config.json` and its helper programs.

use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;

use super::RegistryError;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// How to log in.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// As `~/.docker/config.json` (or `$DOCKER_CONFIG`) says; anonymous if it
    /// has nothing for the registry.
    #[default]
    DockerConfig,
    /// Not at all.
    Anonymous,
    /// With these.
    Password {
        /// User name.
        user: String,
        /// Password or access token.
        password: String,
    },
}

impl Credentials {
    /// Finds the credentials for a registry; may run a helper program.
    pub(super) async fn find(self, image: &Reference) -> Result<RegistryAuth, RegistryError> {
        match self {
            Self::Anonymous => return Ok(RegistryAuth::Anonymous),
            Self::Password { user, password } => return Ok(RegistryAuth::Basic(user, password)),
            Self::DockerConfig => {}
        }
        let registry = image.registry().to_owned();
        let bad =
            |why: String| RegistryError::Credentials { registry: image.registry().to_owned(), why };
        let looked = tokio::task::spawn_blocking(move || look_up(&registry)).await;
        match looked.map_err(|error| bad(error.to_string()))? {
            Ok(Some(DockerCredential::UsernamePassword(user, password))) => {
                Ok(RegistryAuth::Basic(user, password))
            }
            Ok(Some(DockerCredential::IdentityToken(_))) => Err(bad(
                "an identity token is stored, which is not supported yet: log in with a password or access token".to_owned(),
            )),
            Ok(None) => Ok(RegistryAuth::Anonymous),
            Err(error) => Err(bad(error.to_string())),
        }
    }
}

fn config_file() -> Option<PathBuf> {
    let dir = match std::env::var_os("DOCKER_CONFIG") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(dir.join("config.json"))
}

fn look_up(registry: &str) -> Result<Option<DockerCredential>, CredentialRetrievalError> {
    // The crate does not tell "no file" from "unreadable file".
    if !config_file().is_some_and(|file| file.exists()) {
        return Ok(None);
    }
    // Docker's own registry is filed under this historical address.
    let key = match registry {
        DEFAULT_REGISTRY => "https://index.docker.io/v1/",
        other => other,
    };
    match docker_credential::get_credential(key) {
        Ok(found) => Ok(Some(found)),
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound,
        ) => Ok(None),
        // How every helper says that it has nothing for this registry.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. })
            if stdout.contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
