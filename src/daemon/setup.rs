//! From files to a running configuration: at the start, and again at each reload.

use std::{
    collections::BTreeSet,
    error::Error,
    fmt,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    config::{Config, ConfigError, SharePaths},
    finder::{Holdings, acceptance::Trust},
    format::{PublicKey, SecretKey},
    store::{LocalStore, OpenError, SharePolicy},
    system::{
        ReadError, config_file,
        credentials::{self, KeyFileError},
        journal::chain,
        nix_conf::{self, NixConf, NixConfReadError},
    },
};

/// Where settings are when nobody says otherwise; the file need not exist.
pub const CONFIG_FILE: &str = "/etc/peerix/peerix.toml";

/// What the command line says; it wins over the file, also after a reload.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The config file; it must exist.
    pub config_file: Option<PathBuf>,
    /// `--port`.
    pub port: Option<u16>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
    /// `--private-key`.
    pub key_file: Option<PathBuf>,
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The config file cannot be read.
    #[error("cannot read the settings")]
    ConfigFile(#[source] ReadError),
    /// The config file is wrong.
    #[error("cannot use {}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ConfigError,
    },
    /// The signing key cannot be used.
    #[error("cannot sign")]
    Key(#[source] KeyFileError),
    /// nix.conf cannot be used.
    #[error("cannot tell whom Nix trusts")]
    NixConf(#[source] NixConfReadError),
    /// The Nix database cannot be used.
    #[error("cannot read the local store")]
    Store(#[source] OpenError),
}

impl SetupError {
    /// Whether a file is there, but not for us.
    pub fn is_permission(&self) -> bool {
        is_permission(self)
    }
}

/// Whether what failed is there, but not for us.
pub fn is_permission(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Settings, keys and trust, as read from files. Made before privileges are dropped: keys
/// may be for root alone.
pub struct Setup {
    /// The settings, with the command line applied.
    pub config: Config,
    keys: Vec<SecretKey>,
    nix_conf: NixConf,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Setup {
    /// Reads all files.
    pub fn read(options: &Options) -> Result<Self, SetupError> {
        let config = configure(options)?;
        let keys = credentials::signing_key(config.signing.key_file.as_deref())
            .map_err(SetupError::Key)?;
        let nix_conf = nix_conf::read(&config.trust.nix_conf).map_err(SetupError::NixConf)?;
        Ok(Self {
            config,
            keys: keys.unwrap_or_default(),
            nix_conf,
        })
    }

    /// Reads all files again, now without the rights of the start: a key that only root may
    /// read stays as it is.
    pub fn read_again(options: &Options, old: &Self) -> Result<Self, SetupError> {
        let config = configure(options)?;
        let keys = match credentials::signing_key(config.signing.key_file.as_deref()) {
            Ok(keys) => keys.unwrap_or_default(),
            Err(error) if is_permission(&error) && config.signing == old.config.signing => {
                log::info!("the signing keys stay as they are: {}", chain(&error));
                old.keys.clone()
            }
            Err(error) => return Err(SetupError::Key(error)),
        };
        let nix_conf = nix_conf::read(&config.trust.nix_conf).map_err(SetupError::NixConf)?;
        Ok(Self {
            config,
            keys,
            nix_conf,
        })
    }

    /// The same settings and keys with nix.conf as it is now.
    pub fn with_new_trust(&self) -> Result<Self, SetupError> {
        let nix_conf = nix_conf::read(&self.config.trust.nix_conf).map_err(SetupError::NixConf)?;
        Ok(Self {
            config: self.config.clone(),
            keys: self.keys.clone(),
            nix_conf,
        })
    }

    /// Looks at the store, with the rights that the daemon keeps.
    pub fn open_store(&self) -> Result<LocalStore, SetupError> {
        LocalStore::open(&self.config.store).map_err(SetupError::Store)
    }

    /// Whether a file of nix.conf has changed since it was read.
    pub fn nix_conf_changed(&self) -> bool {
        self.nix_conf.changed()
    }

    /// Names of the keys that we sign with.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(SecretKey::name)
    }

    /// Those of nix.conf, and those of `trust.public-keys`.
    pub(super) fn trusted_keys(&self) -> Vec<PublicKey> {
        let own = &self.config.trust.public_keys;
        [&self.nix_conf.trust.public_keys[..], own].concat()
    }

    /// The trusted keys that `share.keys` does not have, our own left out.
    pub(super) fn trusted_keys_not_shared(&self) -> Vec<PublicKey> {
        let trusted = self.trusted_keys();
        let shared = self.config.share.resolve_keys(&trusted);
        let is_own = |key: &PublicKey| self.keys.iter().any(|own| own.public_key() == *key);
        trusted
            .into_iter()
            .filter(|key| !shared.contains(key) && !is_own(key))
            .collect()
    }

    /// `share.paths`, or what holds without it.
    pub(super) fn share_rule(&self) -> SharePaths {
        self.config.share.rule(!self.keys.is_empty())
    }

    /// The line of peerix.toml that has these trusted keys in `share.keys`, too.
    pub(super) fn share_keys_with(&self, names: &BTreeSet<String>) -> String {
        let before = self.config.share.keys.iter().map(ToString::to_string);
        let keys: Vec<_> = before.chain(names.iter().cloned()).collect();
        format!("share.keys = {keys:?}")
    }

    /// Whose narinfos we pass on to Nix.
    pub(super) fn trust(&self) -> Trust {
        Trust {
            store_dir: self.config.store.dir.clone(),
            keys: self.trusted_keys().into_iter().collect(),
            require_sigs: self.nix_conf.trust.require_sigs,
            nar_limit: self.config.limits.nar.bytes(),
        }
    }

    /// What of `store` we share.
    pub(super) fn holdings(&self, store: LocalStore) -> Holdings {
        let config = &self.config;
        let trusted = self.trusted_keys();
        for name in config.share.unknown_names(&trusted) {
            log::warn!(
                "share.keys has `{name}`, and no trusted key has this name: what it signed is not shared; \
                 right would be NAME:BASE64, or the name of a key in trusted-public-keys or trust.public-keys"
            );
        }
        let share = SharePolicy::new(
            config.store.dir.clone(),
            self.share_rule(),
            config.share.exclude.clone(),
            config.share.resolve_keys(&trusted).into_iter().collect(),
            self.keys.clone(),
        );
        Holdings {
            store,
            share: Arc::new(share),
        }
    }
}

/// The settings of a file, which must exist, or of [`CONFIG_FILE`] if that is there.
pub fn read_config(file: Option<&Path>) -> Result<Config, SetupError> {
    let path = file.unwrap_or(Path::new(CONFIG_FILE));
    match config_file::read(path) {
        Ok(text) => Config::parse(&text).map_err(|source| SetupError::Config {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.is_absent() && file.is_none() => Ok(Config::default()),
        Err(error) => Err(SetupError::ConfigFile(error)),
    }
}

fn configure(options: &Options) -> Result<Config, SetupError> {
    let mut config = read_config(options.config_file.as_deref())?;
    if let Some(port) = options.port {
        config.port = port;
    }
    if let Some(timeout) = options.timeout {
        config.discovery.timeout = timeout;
        config.discovery.wake_timeout = config.discovery.wake_timeout.max(timeout);
    }
    if let Some(key_file) = &options.key_file {
        config.signing.key_file = Some(key_file.clone());
    }
    Ok(config)
}
