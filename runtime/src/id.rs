//! Ids and names of containers.

use std::io::Read;

/// Length of a full id in hexadecimal digits.
pub const ID_LEN: usize = 64;
/// Length of the id as it is shown.
pub const SHORT_LEN: usize = 12;

const ADJECTIVES: [&str; 32] = [
    "brave", "calm", "careful", "clever", "cosy", "dry", "eager", "firm", "gentle", "happy",
    "keen", "kind", "lively", "lucid", "merry", "modest", "neat", "noble", "patient", "proud",
    "quick", "quiet", "ready", "sharp", "sober", "solid", "steady", "sunny", "swift", "tidy",
    "upright", "wise",
];

/// Parts of ships, and what keeps them afloat.
const NOUNS: [&str; 40] = [
    "anchor",
    "ballast",
    "beacon",
    "bilge",
    "binnacle",
    "bosun",
    "bow",
    "bowsprit",
    "bulwark",
    "buoy",
    "cabin",
    "capstan",
    "clipper",
    "compass",
    "cutter",
    "deck",
    "ferry",
    "forecastle",
    "frigate",
    "galley",
    "gangway",
    "hatch",
    "hawser",
    "helm",
    "hull",
    "jib",
    "keel",
    "ketch",
    "lantern",
    "lugger",
    "mast",
    "oar",
    "porthole",
    "rudder",
    "schooner",
    "sextant",
    "sloop",
    "spinnaker",
    "stern",
    "tiller",
];

/// Random bytes of the kernel.
///
/// # Errors
/// When /dev/urandom is missing.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// `bytes` in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A new container id.
///
/// # Errors
/// As [`random`].
pub fn new_id() -> std::io::Result<String> {
    Ok(hex(&random::<{ ID_LEN / 2 }>()?))
}

/// Whether `text` is a full id.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The id as it is shown to people.
pub fn short(id: &str) -> &str {
    id.get(..SHORT_LEN).unwrap_or(id)
}

/// A random name such as `steady_keel`; from the third `attempt` on with a digit.
///
/// # Errors
/// As [`random`].
pub fn random_name(attempt: u32) -> std::io::Result<String> {
    let [a, n, digit] = random()?;
    let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(n) % NOUNS.len()];
    Ok(match attempt {
        0..3 => format!("{adjective}_{noun}"),
        3..20 => format!("{adjective}_{noun}{}", digit % 10),
        _ => format!("{adjective}_{noun}_{}", hex(&random::<4>()?)),
    })
}

/// Whether `name` may name a container, as docker has it:
/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, here at most 128 characters.
pub fn valid_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    first && rest && (2..=128).contains(&name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_well_formed() {
        let id = new_id().unwrap();
        assert_eq!((id.len(), short(&id).len()), (64, 12));
        assert!(is_id(&id) && !is_id(short(&id)) && !is_id(&"g".repeat(ID_LEN)));
        for attempt in 0..30 {
            assert!(valid_name(&random_name(attempt).unwrap()));
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "a", "-ab", "a/b", "a b", "..", "ä1", &"x".repeat(129)] {
            assert!(!valid_name(bad), "{bad}");
        }
        assert!(valid_name("web-1.test_x"));
    }
}
