//! Compression of layers and archives, told by magic number: media types lie.

use std::io::{self, BufReader, Cursor, Read};

use super::UnpackError;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames.
    Zstd,
}

impl Compression {
    /// The OCI media type of a layer compressed so.
    pub fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// zstd windows above 2^27 bytes (its own default bound) are not decoded: a
/// hostile frame would have us allocate that much.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER: usize = 128 << 10;

/// The compression that the first bytes of a blob tell.
pub(crate) fn sniff(magic: &[u8]) -> Result<Compression, UnpackError> {
    match magic {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        // A zstd frame, or a skippable frame in front of one (stargz-like
        // tools put their table of contents there).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(UnpackError::Compression("xz")),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Err(UnpackError::Compression("bzip2")),
        _ => Ok(Compression::None),
    }
}

/// The uncompressed content of `blob`.
pub(crate) fn decoder<'a>(mut blob: impl Read + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let unreadable = |source| UnpackError::Read { entry: super::printable(b"./"), source };
    let mut magic = Vec::with_capacity(8);
    (&mut blob).take(8).read_to_end(&mut magic).map_err(unreadable)?;
    let compression = sniff(&magic)?;
    let whole = Cursor::new(magic).chain(blob);
    Ok(match compression {
        Compression::None => Box::new(BufReader::with_capacity(BUFFER, whole)),
        Compression::Gzip => {
            let packed = BufReader::with_capacity(BUFFER, whole);
            let plain = flate2::bufread::MultiGzDecoder::new(packed);
            Box::new(BufReader::with_capacity(BUFFER, plain))
        }
        Compression::Zstd => {
            let plain = zstd_decoder(whole).map_err(unreadable)?;
            Box::new(BufReader::with_capacity(BUFFER, plain))
        }
    })
}

fn zstd_decoder<'a>(blob: impl Read + 'a) -> io::Result<impl Read + 'a> {
    let mut plain = zstd::stream::read::Decoder::new(blob)?;
    plain.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(plain)
}
