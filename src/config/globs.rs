//! Lists of shell globs (`*`, `?`, `[a-z]`), compiled when they are read.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a pattern is not a glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a glob; right would be a name with *, ? or [a-z]")]
pub struct GlobError {
    /// What was written.
    pattern: String,
    #[source]
    source: globset::Error,
}

/// Patterns of which any may match the whole name.
#[derive(Debug, Clone)]
pub struct Globs {
    patterns: Vec<String>,
    compiled: GlobSet,
}

impl Globs {
    /// Compiles `patterns`.
    pub fn new<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, GlobError> {
        let patterns: Vec<String> = patterns.into_iter().map(Into::into).collect();
        let mut set = GlobSetBuilder::new();
        for pattern in &patterns {
            let error = |source| GlobError {
                pattern: pattern.clone(),
                source,
            };
            set.add(GlobBuilder::new(pattern).build().map_err(error)?);
        }
        let error = |source| GlobError {
            pattern: patterns.join(" "),
            source,
        };
        let compiled = set.build().map_err(error)?;
        Ok(Self { patterns, compiled })
    }

    /// Whether one of the patterns matches all of `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.compiled.is_match(name)
    }

    /// The patterns as they were written.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether there is no pattern, so that nothing matches.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Serialize for Globs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.patterns.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Globs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<String>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_names() {
        let globs = Globs::new(["*.drv", "etc", "etc-*", "*secret*"]).expect("globs");
        for name in ["x.drv", "etc", "etc-hosts", "my-secret-file", ".drv"] {
            assert!(globs.matches(name), "{name}");
        }
        for name in ["drv", "etcetera", "hello-2.12", "x.drv.gz"] {
            assert!(!globs.matches(name), "{name}");
        }
    }

    #[test]
    fn a_broken_glob_is_named() {
        let error = Globs::new(["ok", "[z"]).expect_err("unclosed class");
        assert!(error.to_string().contains("`[z`"), "{error}");
    }
}
