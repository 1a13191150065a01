//! Names of images, as docker writes them: `[registry/]name[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// The registry of names that give none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// What docker and the distribution spec allow for a whole name, in bytes.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A complete image name: a tag, a digest, or both are always there.
///
/// `Display` gives the full form (`docker.io/library/debian:12`),
/// [`Reference::familiar`] the one that people type (`debian:12`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that is no image name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an image name: {why}; expected [registry/]name[:tag][@sha256:digest]")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// Host and port of the registry, `docker.io` for Docker's own.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The name within the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the image is pinned to.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository, pinned to `digest` and without a tag.
    pub fn pinned(&self, digest: &Digest) -> Self {
        Self { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// The name under which the store keeps the image: a digest, where there
    /// is one, says more than a tag that may move.
    pub fn canonical(&self) -> Self {
        match &self.digest {
            Some(digest) => self.pinned(digest),
            None => self.clone(),
        }
    }

    /// The name as people type it, without what is understood.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        match short.strip_prefix("library/") {
            Some(official) if self.registry == DEFAULT_REGISTRY && !official.contains('/') => {
                official.to_owned()
            }
            _ => short.to_owned(),
        }
    }

    /// The registry is this machine, which speaks plain http.
    pub fn is_local(&self) -> bool {
        let host = self.registry.as_str();
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => host.split(':').next().unwrap_or(host),
        };
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError { text: text.chars().take(300).collect(), why })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|_| "the digest is not sha256")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_start..].split_once(':') {
        Some((last, tag)) => (&rest[..name_start + last.len()], Some(tag)),
        None => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if is_registry(host) => (host, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    check_registry(registry)?;
    check_repository(path)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let official = registry == DEFAULT_REGISTRY && !path.contains('/');
    let repository = match official {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
}

/// docker's rule for the part before the first slash: something that cannot
/// be a repository's name is a host.
fn is_registry(host: &str) -> bool {
    host.contains(['.', ':', '[']) || host == "localhost" || host.contains(char::is_uppercase)
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry is not a host name";
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (ip, port) = rest.split_once(']').ok_or(BAD)?;
            ip.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            ("v6", port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, Some("0")),
        },
    };
    let is_label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        edge(label.chars().next()) && edge(label.chars().last()) && label.chars().all(inner)
    };
    let port = port.ok_or(BAD)?;
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    match is_port && host.split('.').all(is_label) {
        true => Ok(()),
        false => Err(BAD),
    }
}

fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it has no name");
    }
    match path.split('/').all(is_path_component) {
        true => Ok(()),
        false => Err("a name has lower-case letters, digits, single . _ - (or __) between them"),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    alphanumeric(*first)
        && alphanumeric(*last)
        && separators
            .filter(|s| !s.is_empty())
            .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    match good {
        true => Ok(()),
        false => Err("a tag has letters, digits, . _ - and at most 128 of them"),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let digest = Digest::of(b"x");
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("[::1]:5000/x/y", "[::1]:5000/x/y:latest"),
            ("ghcr.io/a/b__c/d-e.f", "ghcr.io/a/b__c/d-e.f:latest"),
        ] {
            assert_eq!(full(text), expected);
        }
        assert_eq!(full(&format!("debian@{digest}")), format!("docker.io/library/debian@{digest}"));
        let both: Reference = format!("debian:12@{digest}").parse().unwrap();
        assert_eq!(both.tag(), Some("12"));
        assert_eq!(both.canonical().to_string(), full(&format!("debian@{digest}")));
    }

    #[test]
    fn bad_names_are_refused() {
        for text in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:12",
            "Debian",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a..b",
            "a___b",
            "a b",
            "a:b:c",
            "a:.x",
            "host:99999/a",
            "host:x/a",
            "[::1/a",
            "-h.io/a",
            "../a",
            "a/../b",
            "localhost:5000",
        ] {
            // The last one is the image "localhost" with tag 5000, as in docker.
            let result = text.parse::<Reference>();
            assert_eq!(result.is_ok(), text == "localhost:5000", "{text:?}: {result:?}");
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }

    #[test]
    fn people_see_the_short_form() {
        for (text, short) in [
            ("docker.io/library/debian:12", "debian:12"),
            ("docker.io/a/b", "a/b:latest"),
            ("ghcr.io/library/x", "ghcr.io/library/x:latest"),
            ("docker.io/library/a/b", "library/a/b:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), short);
        }
    }

    #[test]
    fn only_this_machine_is_local() {
        for (text, local) in [
            ("localhost/x", true),
            ("localhost:5000/x", true),
            ("127.0.0.1:5000/x", true),
            ("[::1]:5000/x", true),
            ("localhost.example.com/x", false),
            ("192.168.0.1:5000/x", false),
            ("debian", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_local(), local, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn both_printed_forms_parse_back(
            text in "(([a-z]{1,5}\\.io|localhost)(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,6}([._-][a-z0-9]{1,4}){0,2}(/[a-z]{1,4})?(:[A-Za-z0-9_][\\w.-]{0,9})?(@sha256:[0-9a-f]{64})?"
        ) {
            if let Ok(parsed) = text.parse::<Reference>() {
                prop_assert_eq!(&parsed.to_string().parse::<Reference>().unwrap(), &parsed);
                prop_assert_eq!(&parsed.familiar().parse::<Reference>().unwrap(), &parsed);
            }
        }
    }
}
