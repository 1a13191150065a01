//! Signals by name and number, as `docker kill` and `STOPSIGNAL` write them.

use nix::sys::signal::Signal;

/// A Linux signal of x86-64, real-time ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalNumber(pub i32);

/// The text names no signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {0}")]
pub struct InvalidSignal(pub String);

/// First real-time signal that applications may use (glibc keeps 32 and 33).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

impl std::str::FromStr for SignalNumber {
    type Err = InvalidSignal;

    fn from_str(text: &str) -> Result<SignalNumber, InvalidSignal> {
        parse(text).map(SignalNumber).ok_or_else(|| InvalidSignal(text.into()))
    }
}

fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |offset: &str, from: i32, sign: i32| {
        let offset = if offset.is_empty() { 0 } else { offset[1..].parse::<i32>().ok()? };
        let number = from.checked_add(sign.checked_mul(offset)?)?;
        (RTMIN..=RTMAX).contains(&number).then_some(number)
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return (offset.is_empty() || offset.starts_with('+'))
            .then(|| real_time(offset, RTMIN, 1))?;
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return (offset.is_empty() || offset.starts_with('-'))
            .then(|| real_time(offset, RTMAX, -1))?;
    }
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_numbers() {
        let cases = [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("sigterm", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("rtmax-1", Some(63)),
            ("CLD", Some(17)),
            ("0", None),
            ("65", None),
            ("RTMIN-1", None),
            ("RTMAX+1", None),
            ("RTMIN+31", None),
            ("SIGSIGTERM", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<SignalNumber>().ok().map(|s| s.0), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(text in "(RTMIN|RTMAX|SIG|)[+-]?.{0,12}") {
            let _ = text.parse::<SignalNumber>();
        }
    }
}
