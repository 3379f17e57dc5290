//! What can be wrong with a peerix.toml.

/// Why a peerix.toml cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value that its key does not take.
    #[error("line {line}, `{text}`: {}", toml.message().trim_end())]
    File {
        /// 1-based.
        line: usize,
        /// What stands there, cut when it is long.
        text: String,
        /// What is wrong with it, and what would be right.
        toml: Box<toml::de::Error>,
    },
    /// Well-formed on its own, but out of the bounds that the daemon can run with.
    #[error("{key} = {value}: right would be {right}")]
    Bounds {
        /// The key, with its table.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it takes.
        right: &'static str,
    },
}

impl ConfigError {
    pub(super) fn file(text: &str, toml: toml::de::Error) -> Self {
        let start = toml.span().map_or(0, |span| span.start.min(text.len()));
        let line = text
            .bytes()
            .take(start)
            .filter(|byte| *byte == b'\n')
            .count();
        let shown = text.lines().nth(line).unwrap_or_default().trim();
        Self::File {
            line: line + 1,
            text: shown.chars().take(80).collect(),
            toml: Box::new(toml),
        }
    }
}
