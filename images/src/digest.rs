//! Content digests: sha256, the one algorithm that images use in practice.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A sha256 digest, printed as `sha256:<64 lower-case hex digits>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    hex: String,
}

/// A text that is no sha256 digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a digest: expected sha256: and 64 lower-case hex digits")]
pub struct DigestError(pub String);

impl Digest {
    /// The digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self::from_hash(&Sha256::digest(data).into())
    }

    /// Wraps a computed sha256.
    pub fn from_hash(hash: &[u8; 32]) -> Self {
        Self { hex: hex::encode(hash) }
    }

    /// The digest of everything that `data` gives, and its length in bytes.
    ///
    /// # Errors
    ///
    /// Those of the reader.
    pub fn of_reader(mut data: impl Read) -> io::Result<(Self, u64)> {
        let mut hash = Sha256::new();
        let length = io::copy(&mut data, &mut Hasher(&mut hash))?;
        Ok((Self::from_hash(&hash.finalize().into()), length))
    }

    /// The 64 hex digits: the name in the store.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve hex digits, as people see an id.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

struct Hasher<'a>(&'a mut Sha256);

impl Write for Hasher<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let is_hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.as_bytes().iter().all(is_hex) => {
                Ok(Self { hex: hex.to_owned() })
            }
            _ => Err(DigestError(text.chars().take(100).collect())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(
            good.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(good.to_string().parse(), Ok(good.clone()));
        let upper = format!("sha256:{}", good.hex().to_uppercase());
        let path = format!("sha256:{}", "../".repeat(21) + "a");
        for bad in ["", "sha256:", "sha512:00", "sha256:zz", &upper, &path] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
