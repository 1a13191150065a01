//! Pulls from a real registry (Debian's `docker-registry`) filled by `skopeo`,
//! and from a proxy in front of it that breaks connections.

mod host;
mod pull;
