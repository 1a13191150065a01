//! `create`: a container on disk, nothing running.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::config::VERSION;
use super::lasting;
use super::{Container, ContainerConfig, ContainerError, Containers, State, Writable};
use crate::files::write_json;
use crate::limits::LimitError;
use crate::networks::options::Networking;
use crate::networks::{self, Networks};
use crate::rootless::is_rootless;
use crate::spec::mounts::Volume;
use crate::spec::{self, SpecOptions};
use crate::time::Timestamp;
use crate::user::{self, Layers};
use crate::{dirs, id};

/// The image of a new container.
#[derive(Debug)]
pub struct ImageSource<'a> {
    /// As it was asked for.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its configuration.
    pub config: &'a ImageConfiguration,
    /// Its unpacked layers, bottom first.
    pub layers: Vec<PathBuf>,
}

/// What the person asks for.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// Its name; a random one if absent.
    pub name: Option<String>,
    /// `USER` of the process; the image's if absent.
    pub user: Option<String>,
    /// The specification. An empty host name becomes the short id.
    pub spec: SpecOptions,
    /// Where changes go.
    pub writable: Writable,
    /// Its network; none but loopback if absent.
    pub network: Option<Networking>,
    /// Whether stdin is open.
    pub stdin: bool,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// Signal that `stop` sends; SIGTERM if absent.
    pub stop_signal: Option<i32>,
}

impl Containers {
    /// Creates a container.
    ///
    /// # Errors
    /// When the options make no container; nothing is left then.
    pub fn create(
        &self,
        image: &ImageSource,
        mut options: CreateOptions,
    ) -> Result<Container, ContainerError> {
        if let Some(name) = &options.name
            && !id::valid_name(name)
        {
            return Err(ContainerError::InvalidName(name.clone()));
        }
        let id = id::new_id().map_err(ContainerError::io("/dev/urandom"))?;
        if options.spec.hostname.is_empty() {
            options.spec.hostname = id::short(&id).into();
        }
        let image_config = image.config.config().as_ref();
        let image_user = image_config.and_then(|config| config.user().clone());
        let user = options.user.or(image_user).unwrap_or_default();
        let user = user::resolve(&user, &Layers::bottom_first(&image.layers))?;
        for volume in &options.spec.volumes {
            make_volume(&volume.host)?;
        }
        if let Some(network) = &options.network {
            networks::check_root(&network.network)?;
            if network.network != networks::passt::NAME {
                Networks::new(self.dirs().clone()).find(&network.network)?;
            }
            let files = of_network(&self.dirs().container_lib(&id), &options.spec);
            options.spec.volumes.extend(files);
        }
        let spec = spec::build(image.config, &options.spec, &user)?;
        let shape = options.spec.limits.shape()?;
        if is_rootless() && options.spec.limits.cpus.is_some_and(|cpus| !cpus.is_whole()) {
            return Err(LimitError::CpuFraction.into());
        }
        let image_labels = image_config.and_then(|config| config.labels().clone());
        let mut labels: BTreeMap<_, _> = image_labels.into_iter().flatten().collect();
        labels.extend(options.spec.labels);
        let mut config = ContainerConfig {
            version: VERSION,
            id,
            name: String::new(),
            created: Timestamp::now(),
            image: image.name.clone(),
            image_id: image.id.clone(),
            layers: image.layers.clone(),
            writable: options.writable,
            spec,
            volumes: options.spec.volumes,
            network: options.network,
            limits: options.spec.limits,
            shape,
            tty: options.spec.process.tty,
            stdin: options.stdin,
            auto_remove: options.auto_remove,
            stop_signal: options.stop_signal.unwrap_or(libc::SIGTERM),
            labels,
        };
        self.sweep(self.lock_names()?);
        let _names = self.lock_names()?;
        config.name = self.choose_name(options.name)?;
        let container = self.adopt(config);
        write(&container).inspect_err(|_| {
            let _ = dirs::remove_tree(&container.lib_dir());
            let _ = dirs::remove_tree(&container.run_dir());
        })?;
        Ok(container)
    }

    /// The name asked for if it is free, or a random one that is.
    fn choose_name(&self, asked: Option<String>) -> Result<String, ContainerError> {
        let others = self.all()?.sound.into_iter();
        let taken: BTreeMap<String, String> =
            others.map(|other| (other.config.name, other.config.id)).collect();
        if let Some(name) = asked {
            return match taken.get(&name) {
                Some(id) => Err(ContainerError::NameTaken { name, id: id.clone() }),
                None => Ok(name),
            };
        }
        let mut attempt = 0;
        loop {
            let name = id::random_name(attempt).map_err(ContainerError::io("/dev/urandom"))?;
            if !taken.contains_key(&name) {
                return Ok(name);
            }
            attempt += 1;
        }
    }
}

/// Files that a container with a network shares with the host, but for those that the person
/// has given a place.
fn of_network(lib: &Path, options: &SpecOptions) -> Vec<Volume> {
    let files = networks::paths(lib);
    let free = |place: &str| options.volumes.iter().all(|volume| volume.guest != place);
    let volume = |(host, guest): (&Path, &str)| Volume {
        host: host.into(),
        guest: guest.into(),
        read_only: options.read_only,
    };
    files.places().into_iter().filter(|(_, place)| free(place)).map(volume).collect()
}

/// Makes a directory where a volume's host path is absent, as docker does.
fn make_volume(path: &PathBuf) -> Result<(), ContainerError> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(ContainerError::io(path))
}

/// config.json comes last: a container exists from that moment on.
fn write(container: &Container) -> Result<(), ContainerError> {
    let lib = container.lib_dir();
    dirs::make_private(&lib).map_err(ContainerError::io(&lib))?;
    if container.config.writes_to_host() {
        for directory in ["upper", "work"] {
            // Not private: their modes are those of the container's own root.
            let path = container.rw_dir().join(directory);
            std::fs::create_dir_all(&path).map_err(ContainerError::io(&path))?;
        }
    }
    lasting::write(&lib, &State::Created)?;
    Ok(write_json(&container.config_path(), &container.config)?)
}
