//! Choosing one image of a multi-platform index.

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, Os, Platform};

/// This machine's name in OCI terms.
pub(crate) fn host_arch() -> Arch {
    match std::env::consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        other => Arch::from(other),
    }
}

/// Whether an image for `platform` runs here. Variants of amd64 above the
/// baseline (v2, v3, ...) are only taken where nothing plainer is offered.
fn rank(platform: &Platform) -> Option<u32> {
    if *platform.os() != Os::Linux || *platform.architecture() != host_arch() {
        return None;
    }
    match platform.variant().as_deref() {
        None | Some("" | "v1" | "v8") => Some(0),
        Some(_) => Some(1),
    }
}

/// The entry of an index for this machine. Entries without a platform (build
/// attestations say `unknown`) are only taken if there is nothing else.
pub(crate) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let ranked =
        manifests.iter().filter_map(|entry| Some((rank(entry.platform().as_ref()?)?, entry)));
    match ranked.min_by_key(|(rank, _)| *rank) {
        Some((_, entry)) => Some(entry),
        None => match manifests {
            [only] if only.platform().is_none() => Some(only),
            _ => None,
        },
    }
}

/// What an index offers, for messages.
pub(crate) fn offered(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|entry| entry.platform().as_ref())
        .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
        .filter(|name| !name.starts_with("unknown"))
        .collect();
    names.sort();
    names.dedup();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// `None` if the image runs here, else the platform that it is for.
pub(crate) fn foreign(config: &ImageConfiguration) -> Option<String> {
    let here = *config.os() == Os::Linux && *config.architecture() == host_arch();
    (!here).then(|| format!("{}/{}", config.os(), config.architecture()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[(&str, &str, &str)]) -> Vec<Descriptor> {
        let entries = platforms.iter().map(|(os, arch, variant)| {
            let hex = "0".repeat(64);
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{hex}"),
                "size": 1,
                "platform": {"os": os, "architecture": arch, "variant": variant},
            })
        });
        serde_json::from_value(entries.collect()).unwrap()
    }

    #[test]
    fn the_plain_host_platform_wins() {
        let host = host_arch().to_string();
        let all = index(&[
            ("unknown", "unknown", ""),
            ("linux", "s390x", ""),
            ("linux", &host, "v3"),
            ("linux", &host, ""),
            ("windows", &host, ""),
        ]);
        let chosen = choose(&all).unwrap().platform().as_ref().unwrap();
        assert_eq!(chosen.variant().as_deref(), Some(""));
        assert!(choose(&all[..2]).is_none());
        assert_eq!(choose(&all[..3]), Some(&all[2]));
        assert_eq!(offered(&all[..2]), "linux/s390x");
    }
}
