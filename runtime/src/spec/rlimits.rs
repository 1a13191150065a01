//! `--ulimit name=soft[:hard]`.

use std::str::FromStr;

use serde_json::{Value, json};

/// Names of limits, without their prefix.
const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A resource limit of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    name: &'static str,
    soft: u64,
    hard: u64,
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RlimitError {
    /// The form is wrong.
    #[error("invalid ulimit: {0:?} (name=soft[:hard], example: nofile=1024:2048)")]
    Form(String),
    /// The name is unknown.
    #[error("invalid ulimit type: {0}")]
    Name(String),
    /// Soft over hard.
    #[error("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    Order {
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
}

impl FromStr for Rlimit {
    type Err = RlimitError;

    fn from_str(text: &str) -> Result<Rlimit, RlimitError> {
        let form = || RlimitError::Form(text.into());
        let (name, values) = text.split_once('=').ok_or_else(form)?;
        let name = NAMES
            .into_iter()
            .find(|known| *known == name)
            .ok_or_else(|| RlimitError::Name(name.into()))?;
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse().map_err(|_| form()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(RlimitError::Order { soft, hard });
        }
        Ok(Rlimit { name, soft, hard })
    }
}

impl Rlimit {
    pub(super) fn to_value(&self) -> Value {
        let kind = format!("RLIMIT_{}", self.name.to_ascii_uppercase());
        json!({ "type": kind, "soft": self.soft, "hard": self.hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let limit: Rlimit = "nofile=1024:2048".parse().unwrap();
        let expected = json!({ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048 });
        assert_eq!(limit.to_value(), expected);
        assert_eq!("core=-1".parse::<Rlimit>().unwrap().hard, u64::MAX);
        for bad in ["nofile", "nofile=", "x=1", "nofile=2:1", "nofile=1:2:3", "=1"] {
            assert!(bad.parse::<Rlimit>().is_err(), "{bad}");
        }
    }
}
