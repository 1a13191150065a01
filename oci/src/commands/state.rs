//! `state`.

use clap::Args;
use runtime::oci::store::Container;
use runtime::oci::verbs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::args::Global;

/// Options of `state`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Id of the container
    id: String,
}

/// What is printed, in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Printed {
    oci_version: String,
    /// Its id.
    pub id: String,
    /// 0 when nothing of it lives.
    pub pid: i32,
    /// As the specification has it.
    pub status: &'static str,
    /// Its bundle.
    pub bundle: PathBuf,
    rootfs: PathBuf,
    /// When it was made.
    pub created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    /// Its owner's name.
    pub owner: String,
}

/// The state of a container.
pub fn of(container: &Container) -> anyhow::Result<Printed> {
    let (status, pid) = verbs::state(container)?;
    let record = &container.record;
    Ok(Printed {
        oci_version: record.oci_version.clone(),
        id: record.id.clone(),
        pid,
        status: status.name(),
        bundle: record.bundle.clone(),
        rootfs: record.plan.rootfs.clone(),
        created: record.created.to_string(),
        annotations: record.annotations.clone(),
        owner: String::new(),
    })
}

/// Prints the state.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    let state = of(&super::find(global, &arguments.id)?)?;
    super::print(&(serde_json::to_string_pretty(&state)? + "\n"))?;
    Ok(0)
}
