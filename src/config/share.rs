//! `[share]`: what leaves this machine.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Globs, globs};
use crate::format::{PublicKey, nix_conf::CACHE_NIXOS_ORG, signature::is_key_name};

/// What leaves this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharePaths {
    /// Paths that a key of `share.keys` has signed.
    Signed,
    /// Also what was built here, if all that it refers to is shared; signed on the fly.
    Built,
    /// Every valid path.
    All,
    /// Nothing.
    None,
}

/// `[share]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Share {
    /// Which paths; without it `built` when there is a signing key, else `signed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<SharePaths>,
    /// The keys whose signature lets a path leave this machine. The own signing key is one of them
    /// without being named.
    pub keys: Vec<ShareKey>,
    /// Names that are not shared unless a key of `keys` has signed the path.
    pub exclude: Globs,
}

impl Share {
    /// The rule in force, given whether there is a key to sign with.
    pub fn rule(&self, has_signing_key: bool) -> SharePaths {
        self.paths.unwrap_or(if has_signing_key {
            SharePaths::Built
        } else {
            SharePaths::Signed
        })
    }

    /// The keys themselves; a bare name stands for those of `trusted` that have it.
    pub fn resolve_keys(&self, trusted: &[PublicKey]) -> Vec<PublicKey> {
        let resolve = |key: &ShareKey| match key {
            ShareKey::Full(key) => vec![key.clone()],
            ShareKey::Name(name) => {
                let named = trusted.iter().filter(|key| key.name() == &**name);
                named.cloned().collect()
            }
        };
        self.keys.iter().flat_map(resolve).collect()
    }

    /// The bare names in `keys` that no key of `trusted` has.
    pub fn unknown_names<'a>(&'a self, trusted: &'a [PublicKey]) -> impl Iterator<Item = &'a str> {
        self.keys.iter().filter_map(|key| match key {
            ShareKey::Name(name) if trusted.iter().all(|key| key.name() != &**name) => {
                Some(&**name)
            }
            ShareKey::Name(_) | ShareKey::Full(_) => None,
        })
    }
}

impl Default for Share {
    #[expect(clippy::expect_used, reason = "a constant, and parsed in a test")]
    fn default() -> Self {
        let official = PublicKey::parse(CACHE_NIXOS_ORG);
        let exclude = globs(&[
            "*.drv",
            "nixos-system-*",
            "etc",
            "etc-*",
            "unit-*",
            "users-groups.json",
            "initrd-*",
            "*secret*",
        ]);
        Self {
            paths: None,
            keys: vec![ShareKey::Full(
                official.expect("the key of cache.nixos.org is well-formed"),
            )],
            exclude,
        }
    }
}

/// An entry of `share.keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareKey {
    /// `NAME:BASE64`.
    Full(PublicKey),
    /// `NAME`: the trusted keys of that name.
    Name(Box<str>),
}

impl fmt::Display for ShareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(key) => write!(f, "{key}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Serialize for ShareKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ShareKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const RIGHT: &str =
            "right would be \"NAME:BASE64\", or the \"NAME\" of a key that is trusted";
        let text = String::deserialize(deserializer)?;
        if text.contains(':') {
            return PublicKey::parse(&text).map(Self::Full).map_err(|error| {
                de::Error::custom(format_args!(
                    "`{text}` is not a public key: {error}; {RIGHT}"
                ))
            });
        }
        if !is_key_name(&text) {
            let error = format_args!("`{text}` is not the name of a key; {RIGHT}");
            return Err(de::Error::custom(error));
        }
        Ok(Self::Name(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const OTHER: &str = "a-1:2EGDCPEm15zRnXJYeu3o5z8EWZWkTQTykbkIsaJxdOs=";

    fn share(keys: &str) -> Share {
        let text = format!("share.keys = [{keys}]");
        Config::parse(&text).expect("settings").share
    }

    fn other() -> PublicKey {
        PublicKey::parse(OTHER).expect("a key")
    }

    #[test]
    fn the_default_is_the_key_of_cache_nixos_org_alone() {
        let keys = Share::default().resolve_keys(&[other()]);
        let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
        assert_eq!(keys, [CACHE_NIXOS_ORG]);
    }

    #[test]
    fn a_bare_name_is_the_trusted_keys_of_that_name() {
        let namesake = PublicKey::parse(&CACHE_NIXOS_ORG.replace("cache.nixos.org-1", "a-1"));
        let trusted = [other(), namesake.expect("a key")];
        let both = share("\"a-1\", \"b-1\"");
        assert_eq!(both.resolve_keys(&trusted), trusted);
        assert_eq!(both.unknown_names(&trusted).collect::<Vec<_>>(), ["b-1"]);
        // A full key needs no trust.
        assert_eq!(share(&format!("{OTHER:?}")).resolve_keys(&[]), [other()]);
        assert_eq!(share("").resolve_keys(&trusted), []);
    }

    #[test]
    fn comes_back_as_printed() {
        let config =
            Config::parse(&format!("share.keys = [{OTHER:?}, \"a-1\"]")).expect("settings");
        let printed = config.to_toml().expect("serializable");
        assert_eq!(Config::parse(&printed).expect("as printed"), config);
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        for (bad, named) in [("a-1:AAAA", "32 bytes"), ("a b", "a b"), ("", "``")] {
            let error = Config::parse(&format!("share.keys = [{bad:?}]"));
            let error = error.expect_err(bad).to_string();
            assert!(error.contains(named), "{error}");
            assert!(error.contains("NAME:BASE64"), "{error}");
        }
    }
}
