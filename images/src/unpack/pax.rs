//! PAX extended headers.
//!
//! The tar crate splits the records at newlines, which breaks on binary
//! values (a file capability may well contain 0x0a), so the length prefix is
//! followed here.

use super::tar::TarError;

/// The records that matter for a layer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU tar's three ways to say that a file has holes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths in turn, of formats 0.0 and 0.1.
    pub(super) map: Vec<u64>,
    pub(super) has_map: bool,
}

const BAD_RECORD: TarError = TarError::Malformed("a PAX record has no valid length");
const BAD_NUMBER: TarError = TarError::Malformed("a PAX record has no valid number");

impl Pax {
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let space = data.iter().take(20).position(|byte| *byte == b' ');
            let space = space.ok_or(BAD_RECORD)?;
            let length = usize::try_from(number(&data[..space])?).map_err(|_| BAD_RECORD)?;
            let record = data.get(space + 1..length).ok_or(BAD_RECORD)?;
            let record = record.strip_suffix(b"\n").ok_or(BAD_RECORD)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or(BAD_RECORD)?;
            pax.take(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        // POSIX: an empty value takes the record back.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let count = || (!value.is_empty()).then(|| number(value)).transpose();
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = count()?,
            b"uid" => self.uid = count()?,
            b"gid" => self.gid = count()?,
            b"mtime" => self.mtime = (!value.is_empty()).then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = count()?,
            b"GNU.sparse.minor" => self.sparse.minor = count()?,
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = count()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse.has_map = true;
                self.sparse.map.push(number(value)?);
            }
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                let parts = value.split(|byte| *byte == b',');
                let parts = parts.filter(|part| !part.is_empty());
                self.sparse.map = parts.map(number).collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

pub(super) fn number(text: &[u8]) -> Result<u64, TarError> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(BAD_NUMBER);
    }
    let text = std::str::from_utf8(text).map_err(|_| BAD_NUMBER)?;
    text.parse().map_err(|_| BAD_NUMBER)
}

/// Seconds rounded down and the nanoseconds above them: `-1.25` is -2 s and
/// 750 000 000 ns, as the kernel counts.
fn time(text: &[u8]) -> Result<(i64, u32), TarError> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(number(whole)?).map_err(|_| BAD_NUMBER)?;
    let mut digits = [b'0'; 9];
    for (slot, digit) in digits.iter_mut().zip(fraction) {
        *slot = *digit;
    }
    let nanos = u32::try_from(number(&digits)?).map_err(|_| BAD_NUMBER)?;
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        let mut out = format!("{length} {key}=").into_bytes();
        out.extend_from_slice(value);
        out.push(b'\n');
        out
    }

    #[test]
    fn binary_values_with_newlines_survive() {
        let mut data = record("SCHILY.xattr.security.capability", b"\x01\n\n\x02");
        data.extend(record("size", b"77"));
        let pax = Pax::parse(&data).unwrap();
        assert_eq!(pax.xattrs[0].1, b"\x01\n\n\x02");
        assert_eq!(pax.size, Some(77));
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"3.1234567891234").unwrap(), (3, 123_456_789));
        assert!(time(b"x").is_err());
        assert!(time(b"99999999999999999999").is_err());
    }

    #[test]
    fn damage_is_an_error_and_not_a_panic() {
        for bad in [&b"x"[..], b"5 a=b", b"9999 a=b\n", b"6 path\n", b"1 \n", b"0 a=\n"] {
            assert!(Pax::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Pax::parse(b"").is_ok());
    }
}
