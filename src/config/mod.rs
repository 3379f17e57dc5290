//! The settings: every key of peerix.toml, its default and its meaning. Text in, typed value
//! out; reading the file is the caller's. Users read systemd/peerix.toml, which a test compares.

mod bounds;
mod discovery;
mod error;
mod globs;
mod host_name;
mod share;
mod static_peer;
mod units;
mod zoned_address;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use discovery::Discovery;
pub use error::ConfigError;
pub use globs::{GlobError, Globs};
pub use host_name::{HostName, HostNameError};
pub use share::{Share, ShareKey, SharePaths};
pub use static_peer::{CacheHost, CacheUrl, PeerAddress, PeerName, StaticPeer, StaticPeerError};
pub use units::{ByteSize, UnitError, parse_duration};
pub use zoned_address::{ZonedAddress, ZonedAddressError};

use crate::format::{PublicKey, StoreDir};

/// The port of peerix, TCP and UDP, since its first version.
pub const DEFAULT_PORT: u16 = 12_304;

/// Exit the daemon after this long without work, when systemd holds the sockets.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// TCP and UDP port, when systemd passes no sockets; also the port that peers are asked at.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Priority in nix-cache-info: lower is asked first, cache.nixos.org has 40.
    pub priority: u32,
    /// Becomes this user when started as root without systemd.
    pub user: String,
    /// Becomes this group when started as root without systemd; the user's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Who gets an answer at all.
    pub allowed_networks: Vec<IpNet>,
    /// Which interfaces are broadcast on.
    pub interfaces: Interfaces,
    /// When to exit.
    pub idle: Idle,
    /// How neighbours are found.
    pub discovery: Discovery,
    /// What leaves this machine.
    pub share: Share,
    /// Whose signatures count.
    pub trust: Trust,
    /// What we sign with.
    pub signing: Signing,
    /// Where the Nix store is.
    pub store: Store,
    /// Bounds on what peers and clients can use up.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            priority: 20,
            user: "nobody".into(),
            group: None,
            allowed_networks: local_networks(),
            interfaces: Interfaces::default(),
            idle: Idle::default(),
            discovery: Discovery::default(),
            share: Share::default(),
            trust: Trust::default(),
            signing: Signing::default(),
            store: Store::default(),
            limits: Limits::default(),
        }
    }
}

/// `[interfaces]`: globs on names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Interfaces {
    /// Only interfaces that match; all if empty.
    pub include: Globs,
    /// Of those, not the ones that match.
    pub exclude: Globs,
}

impl Interfaces {
    /// Whether the interface may be used.
    pub fn allow(&self, name: &str) -> bool {
        (self.include.is_empty() || self.include.matches(name)) && !self.exclude.matches(name)
    }
}

impl Default for Interfaces {
    fn default() -> Self {
        Self {
            include: globs(&[]),
            exclude: globs(&["docker*", "br-*", "veth*", "virbr*", "tun*", "wg*"]),
        }
    }
}

/// `[idle]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Idle {
    /// See [`Idle::timeout`].
    #[serde(
        deserialize_with = "some_duration",
        serialize_with = "idle_timeout",
        skip_serializing_if = "Option::is_none"
    )]
    timeout: Option<Duration>,
}

impl Idle {
    /// Exit after this long without work; `None` never. Unless the file says otherwise the
    /// daemon only exits when systemd holds the sockets (`activated`) and can wake it again.
    pub fn timeout(&self, activated: bool) -> Option<Duration> {
        let default = activated.then_some(DEFAULT_IDLE_TIMEOUT);
        self.timeout
            .or(default)
            .filter(|timeout| !timeout.is_zero())
    }
}

/// `[trust]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Trust {
    /// Keys trusted beside those of nix.conf.
    #[serde(with = "public_keys")]
    pub public_keys: Vec<PublicKey>,
    /// The nix.conf that names trusted keys.
    pub nix_conf: PathBuf,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            public_keys: Vec::new(),
            nix_conf: "/etc/nix/nix.conf".into(),
        }
    }
}

/// `[signing]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Signing {
    /// A file of `nix-store --generate-binary-cache-key`. A systemd credential
    /// `peerix.signing-key` comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Store {
    /// The logical store directory, as in store paths.
    #[serde(with = "store_dir")]
    pub dir: StoreDir,
    /// Where its files are, if elsewhere (a chroot store).
    #[serde(skip_serializing_if = "Option::is_none")]
    real_dir: Option<PathBuf>,
    /// The Nix database.
    pub database: PathBuf,
}

impl Store {
    /// Where the files of the store are.
    pub fn real_dir(&self) -> &Path {
        self.real_dir
            .as_deref()
            .unwrap_or_else(|| Path::new(self.dir.as_str()))
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            dir: StoreDir::default(),
            real_dir: None,
            database: "/nix/var/nix/db/db.sqlite".into(),
        }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Bytes a second served to the LAN, over all peers; unlimited if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<ByteSize>,
    /// Memory for NAR streams, in all.
    pub buffer: ByteSize,
    /// How long requests under way may take once the daemon stops.
    #[serde(with = "units::duration")]
    pub drain: Duration,
    /// Open connections, loopback included.
    pub connections: u32,
    /// Largest narinfo taken from a peer.
    pub narinfo: ByteSize,
    /// Largest NAR taken from a peer.
    pub nar: ByteSize,
    /// How long a holder of a NAR may be silent where another one can go on.
    #[serde(with = "units::duration")]
    pub stall: Duration,
    /// The same where no other holder is known.
    #[serde(with = "units::duration")]
    pub stall_alone: Duration,
}

/// Connections and descriptors kept for loopback, whatever the LAN does.
pub const LOOPBACK_CONNECTIONS: u32 = 64;

impl Default for Limits {
    fn default() -> Self {
        Self {
            upload: None,
            buffer: ByteSize(40 << 20),
            drain: Duration::from_secs(1),
            connections: 1_024,
            narinfo: ByteSize(64 << 10),
            nar: ByteSize(1 << 40),
            stall: Duration::from_secs(1),
            stall_alone: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Parses the text of a peerix.toml; keys that it does not name have their defaults.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::file(text, error))?;
        config.check_bounds()?;
        Ok(config)
    }

    /// The settings in force, as TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Whether a client or peer at `ip` may have an answer.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.allowed_networks
            .iter()
            .any(|network| network.contains(&ip))
    }
}

/// Loopback, link-local, RFC 1918, RFC 4193 and RFC 6598.
fn local_networks() -> Vec<IpNet> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let v4 = |a, b, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length));
    let v6 = |first, length| {
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0),
            length,
        ))
    };
    vec![
        v4(127, 0, 8),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        v4(169, 254, 16),
        v6(0xfe80, 10),
        v4(10, 0, 8),
        v4(172, 16, 12),
        v4(192, 168, 16),
        v6(0xfc00, 7),
        v4(100, 64, 10),
    ]
}

#[expect(
    clippy::expect_used,
    reason = "the default patterns are constants of this file, and a test compiles them"
)]
fn globs(patterns: &[&str]) -> Globs {
    Globs::new(patterns.iter().copied()).expect("default patterns are globs")
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u16::try_from(number).map_err(|_| {
        de::Error::custom(format_args!(
            "port {number}: right would be 1 to 65535, or 0 for any free one"
        ))
    })
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    units::duration::deserialize(deserializer).map(Some)
}

fn idle_timeout<S: Serializer>(
    timeout: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    units::duration::serialize(&timeout.unwrap_or_default(), serializer)
}

mod public_keys {
    use super::{Deserialize, Deserializer, PublicKey, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        keys: &[PublicKey],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<PublicKey>, D::Error> {
        let parse = |text: &String| {
            PublicKey::parse(text).map_err(|error| {
                de::Error::custom(format_args!(
                    "`{text}` is not a public key: {error}; right would be \"NAME:BASE64\""
                ))
            })
        };
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(parse)
            .collect()
    }
}

mod store_dir {
    use super::{Deserialize, Deserializer, Serializer, StoreDir, de};

    pub(super) fn serialize<S: Serializer>(
        dir: &StoreDir,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dir.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<StoreDir, D::Error> {
        StoreDir::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
