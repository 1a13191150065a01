//! A message on a byte stream: length (u32, little endian), then that many
//! bytes of JSON.

use serde::{Serialize, de::DeserializeOwned};

/// Largest payload in bytes. An OCI configuration with a thousand mounts and
/// a full seccomp profile is under 1 MiB; more is an attack or an accident.
pub const MAX_FRAME: usize = 4 << 20;

/// Bytes of the length that precedes each payload.
pub const HEADER: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over [`MAX_FRAME`].
    #[error("the peer announced a message of {0} bytes; the limit is {MAX_FRAME}")]
    TooLarge(usize),
    /// The payload is not the JSON of the expected message.
    #[error("the peer sent a message that cannot be understood")]
    Json(#[from] serde_json::Error),
}

/// The bytes of `message`: header and payload.
///
/// # Errors
/// [`FrameError::TooLarge`] when the JSON exceeds [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    bytes[..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Length of the payload that follows `header`.
///
/// # Errors
/// [`FrameError::TooLarge`], before anything is allocated for it.
pub fn payload_len(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    Ok(length)
}

/// The message in `payload` (without its header).
///
/// # Errors
/// [`FrameError::Json`] when it is not a `T`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(payload)?)
}

/// Takes the first whole message out of `buffer`, if there is one.
///
/// # Errors
/// As [`payload_len`] and [`decode`]; the stream is then unusable.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let end = HEADER + payload_len(*header)?;
    if buffer.len() < end {
        return Ok(None);
    }
    let message = decode(&buffer[HEADER..end])?;
    buffer.drain(..end);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_message_survives_any_split(words in prop::collection::vec(".*", 0..20), cut in 0usize..4096) {
            let bytes = encode(&words).unwrap();
            let cut = cut.min(bytes.len());
            let mut buffer = bytes[..cut].to_vec();
            let early: Option<Vec<String>> = take(&mut buffer).unwrap();
            if cut < bytes.len() {
                prop_assert!(early.is_none());
                buffer.extend_from_slice(&bytes[cut..]);
                prop_assert_eq!(take::<Vec<String>>(&mut buffer).unwrap(), Some(words));
            } else {
                prop_assert_eq!(early, Some(words));
            }
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = take::<crate::agent::Message>(&mut bytes);
        }
    }

    #[test]
    fn an_oversized_announcement_is_refused_before_allocation() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(take::<String>(&mut buffer), Err(FrameError::TooLarge(_))));
    }
}
