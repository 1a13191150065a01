//! AppArmor policy on its way from the host's kernel into the guest's: both ends of
//! [`crate::agent`] know a profile by its name, and its rules as the kernel reads them.

use serde::{Deserialize, Serialize};

/// Most bytes of policy that one call carries: ten times what the largest profiles of
/// distributions have.
pub const MAX_BYTES: usize = 2 << 20;

/// Most profiles that one call carries.
pub const MAX_PROFILES: usize = 16;

/// What the host's kernel was given for a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The profile's name.
    pub profile: String,
    /// The host's count of changes to its policy when this was loaded: of two that both
    /// have a profile, the later one's holds.
    #[serde(default)]
    pub revision: u64,
    /// Binary policy (`security/apparmor/policy_unpack.c` of Linux): the profile's, and
    /// that of those which were loaded along with it.
    #[serde(with = "crate::bytes")]
    pub binary: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_round_trips_and_the_most_fits_a_frame() {
        let policy = Policy { profile: "a".into(), revision: 7, binary: (0..=255).collect() };
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        assert!(serde_json::from_str::<Policy>(r#"{"profile":"a","binary":"!"}"#).is_err());
        let most = Policy { profile: "a".into(), revision: 0, binary: vec![0; MAX_BYTES] };
        assert!(crate::frame::encode(&most).unwrap().len() < crate::frame::MAX_FRAME * 3 / 4);
    }
}
