//! Paths of requests as routes. Pure; nothing here is percent-decoded but what old peers encode.

use data_encoding::BASE64;

use crate::format::{NarHash, StoreDir, StorePath, StorePathHash};

/// Who may use a route; known before anything in the path is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Every machine of `allowed-networks`.
    Lan,
    /// This machine alone.
    Loopback,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/nix-cache-info`, `/local/nix-cache-info`.
    CacheInfo,
    /// `/local/HASH.narinfo`.
    LocalNarinfo(StorePathHash),
    /// `/nar/HASH-NARHASH.nar`, `/local/nar/HASH-NARHASH.nar`.
    LocalNar(StorePathHash, NarHash),
    /// `/nar/HASH-NARHASH.pieces`, `/local/nar/HASH-NARHASH.pieces`.
    LocalPieces(StorePathHash, NarHash),
    /// `/local/nar/BASE64.nar`: the old peerix form, by full store path.
    LocalNarOf(StorePath),
    /// `/HASH.narinfo`.
    Narinfo(StorePathHash),
    /// `/v3/nar/HASH-NARHASH.nar`.
    Nar(StorePathHash, NarHash),
    /// `/v2/remote/IP/PORT/HASH/…`, which Nix remembers from the old peerix.
    OldNar(StorePathHash),
    /// `/status`.
    Status,
    /// `/metrics`.
    Metrics,
    /// `/healthz`.
    Health,
    /// Anything else.
    Unknown,
}

/// Who may ask for `path`.
pub fn audience(path: &str) -> Audience {
    let gateway = is_narinfo(path) && !path.starts_with("/local/");
    let operator = matches!(path, "/status" | "/metrics" | "/healthz");
    if gateway || operator || path.starts_with("/v2/") || path.starts_with("/v3/") {
        Audience::Loopback
    } else {
        Audience::Lan
    }
}

/// Whether Nix would take the answer for a narinfo, well-formed or not.
pub fn is_narinfo(path: &str) -> bool {
    path.ends_with(".narinfo")
}

impl Route {
    /// Parses a path of a request, without its query.
    pub fn parse(dir: &StoreDir, path: &str) -> Self {
        Self::known(dir, path).unwrap_or(Self::Unknown)
    }

    /// Whether asking for it is work that keeps the daemon up.
    pub fn is_work(&self) -> bool {
        !matches!(
            self,
            Self::Status | Self::Metrics | Self::Health | Self::Unknown
        )
    }

    /// A word for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CacheInfo => "cache-info",
            Self::LocalNarinfo(_) => "local-narinfo",
            Self::LocalNar(..) | Self::LocalNarOf(_) => "local-nar",
            Self::LocalPieces(..) => "pieces",
            Self::Narinfo(_) => "narinfo",
            Self::Nar(..) | Self::OldNar(_) => "nar",
            Self::Status => "status",
            Self::Metrics => "metrics",
            Self::Health => "health",
            Self::Unknown => "unknown",
        }
    }

    fn known(dir: &StoreDir, path: &str) -> Option<Self> {
        match path {
            "/nix-cache-info" | "/local/nix-cache-info" => return Some(Self::CacheInfo),
            "/status" => return Some(Self::Status),
            "/metrics" => return Some(Self::Metrics),
            "/healthz" => return Some(Self::Health),
            _ => {}
        }
        if let Some(name) = path.strip_prefix("/v3/nar/") {
            return nar_name(name).map(|(hash, nar_hash)| Self::Nar(hash, nar_hash));
        }
        if let Some(rest) = path.strip_prefix("/v2/remote/") {
            let hash = rest.split('/').nth(2)?;
            return StorePathHash::parse(hash.as_bytes()).ok().map(Self::OldNar);
        }
        if let Some(name) = path
            .strip_prefix("/nar/")
            .or(path.strip_prefix("/local/nar/"))
        {
            return nar_name(name)
                .map(|(hash, nar_hash)| Self::LocalNar(hash, nar_hash))
                .or_else(|| {
                    hash_pair(name.strip_suffix(".pieces")?)
                        .map(|(hash, nar_hash)| Self::LocalPieces(hash, nar_hash))
                })
                .or_else(|| old_nar_name(dir, name).map(Self::LocalNarOf));
        }
        if let Some(name) = path.strip_prefix("/local/") {
            return narinfo_name(name).map(Self::LocalNarinfo);
        }
        narinfo_name(path.strip_prefix('/')?).map(Self::Narinfo)
    }
}

fn narinfo_name(name: &str) -> Option<StorePathHash> {
    StorePathHash::parse(name.strip_suffix(".narinfo")?.as_bytes()).ok()
}

fn nar_name(name: &str) -> Option<(StorePathHash, NarHash)> {
    hash_pair(name.strip_suffix(".nar")?)
}

fn hash_pair(name: &str) -> Option<(StorePathHash, NarHash)> {
    let (hash, nar_hash) = name.split_once('-')?;
    Some((
        StorePathHash::parse(hash.as_bytes()).ok()?,
        NarHash::parse_base32(nar_hash.as_bytes()).ok()?,
    ))
}

/// Standard base64 of the full store path with `_` for `/`; clients may encode `+` and `=`.
fn old_nar_name(dir: &StoreDir, name: &str) -> Option<StorePath> {
    let text = name.strip_suffix(".nar")?;
    let text = text
        .replace('_', "/")
        .replace("%2B", "+")
        .replace("%3D", "=");
    let path = String::from_utf8(BASE64.decode(text.as_bytes()).ok()?).ok()?;
    StorePath::parse(dir, &path).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "s66mzxpvicwk07gjbjfw9izjfa797vsw";
    const NARHASH: &str = "1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0";

    fn hash() -> StorePathHash {
        StorePathHash::parse(HASH.as_bytes()).expect("hash")
    }

    fn nar_hash() -> NarHash {
        NarHash::parse_base32(NARHASH.as_bytes()).expect("hash")
    }

    fn parse(path: &str) -> Route {
        Route::parse(&StoreDir::default(), path)
    }

    #[test]
    fn every_route_has_its_paths() {
        let path = format!("/nix/store/{HASH}-hello-2.12");
        let old = format!(
            "/local/nar/{}.nar",
            BASE64.encode(path.as_bytes()).replace('/', "_")
        );
        for (path, route) in [
            ("/nix-cache-info".into(), Route::CacheInfo),
            ("/local/nix-cache-info".into(), Route::CacheInfo),
            (
                format!("/local/{HASH}.narinfo"),
                Route::LocalNarinfo(hash()),
            ),
            (
                format!("/nar/{HASH}-{NARHASH}.nar"),
                Route::LocalNar(hash(), nar_hash()),
            ),
            (
                format!("/local/nar/{HASH}-{NARHASH}.nar"),
                Route::LocalNar(hash(), nar_hash()),
            ),
            (
                format!("/nar/{HASH}-{NARHASH}.pieces"),
                Route::LocalPieces(hash(), nar_hash()),
            ),
            (
                format!("/local/nar/{HASH}-{NARHASH}.pieces"),
                Route::LocalPieces(hash(), nar_hash()),
            ),
            (
                old.replace('=', "%3D"),
                Route::LocalNarOf(StorePath::parse(&StoreDir::default(), &path).expect("path")),
            ),
            (
                old,
                Route::LocalNarOf(StorePath::parse(&StoreDir::default(), &path).expect("path")),
            ),
            (format!("/{HASH}.narinfo"), Route::Narinfo(hash())),
            (
                format!("/v3/nar/{HASH}-{NARHASH}.nar"),
                Route::Nar(hash(), nar_hash()),
            ),
            (
                format!("/v2/remote/10.0.0.1/12304/{HASH}/local/nar/x.nar"),
                Route::OldNar(hash()),
            ),
            ("/status".into(), Route::Status),
            ("/metrics".into(), Route::Metrics),
            ("/healthz".into(), Route::Health),
        ] {
            assert_eq!(parse(&path), route, "{path}");
        }
    }

    #[test]
    fn what_is_malformed_is_unknown() {
        for path in [
            "/",
            "",
            "*",
            "/nar/",
            "/local/nar/.nar",
            "/local/nar/Li4vLi4=.nar",
            "/v2/remote/",
            "/v2/remote/a/b/c/d",
            "/v3/nar/x-y.nar",
            "/x.narinfo",
            "/local/x.narinfo",
            "/local//x.narinfo",
            "/../etc/passwd",
            &format!("/{}.narinfo", HASH.to_uppercase()),
            &format!("//{HASH}.narinfo"),
            &format!("/{HASH}.narinfo/"),
            &format!("/nar/{HASH}.nar"),
        ] {
            assert_eq!(parse(path), Route::Unknown, "{path}");
        }
    }

    #[test]
    fn the_audience_is_known_before_the_path_is_parsed() {
        for path in [
            "/x.narinfo",
            "/a/b.narinfo",
            "/v3/",
            "/v3/nar/junk",
            "/v2/remote/",
            "/status",
            "/metrics",
            "/healthz",
        ] {
            assert_eq!(audience(path), Audience::Loopback, "{path}");
        }
        for path in [
            "/",
            "/nix-cache-info",
            "/local/x.narinfo",
            "/nar/x.nar",
            "/nar/x.pieces",
            "/local/nar/x.nar",
            "/status/",
        ] {
            assert_eq!(audience(path), Audience::Lan, "{path}");
        }
    }

    proptest! {
        #[test]
        fn every_loopback_route_is_for_loopback_and_nothing_panics(path in ".{0,100}") {
            let route = parse(&path);
            let private = matches!(
                route,
                Route::Narinfo(_) | Route::Nar(..) | Route::OldNar(_) | Route::Status | Route::Metrics | Route::Health
            );
            prop_assert!(!private || audience(&path) == Audience::Loopback);
        }
    }
}
