//! What a plain cache is and has done, for /status and /metrics.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Entry;

/// What is known of a plain cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheState {
    /// It was not probed yet, or not for a while.
    Unknown,
    /// It answers, and is asked for each path.
    Good,
    /// It does not answer.
    Off,
    /// What answers there is no binary cache.
    NoCache,
    /// It has another store directory.
    OtherStore,
    /// It is this daemon.
    Ourselves,
}

impl CacheState {
    /// All of them, for metrics.
    pub const ALL: [Self; 6] = [
        Self::Unknown,
        Self::Good,
        Self::Off,
        Self::NoCache,
        Self::OtherStore,
        Self::Ourselves,
    ];

    /// A word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Off => "off",
            Self::NoCache => "no-cache",
            Self::OtherStore => "other-store",
            Self::Ourselves => "ourselves",
        }
    }
}

/// What came of a question to a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::finder) enum Answer {
    /// A narinfo that is of use.
    Hit,
    /// It does not have the path.
    Miss,
    /// Its NAR is packed in a way that we cannot unpack.
    Compressed,
    /// A narinfo that is of no use for another reason.
    Refused,
    /// No answer, or one that makes no sense.
    Failure,
    /// It was not waited for any longer: it is announced, and gave nothing so far.
    Left,
}

/// How often each [`Answer`] came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Answers {
    /// Narinfos that were of use.
    pub hits: u64,
    /// Paths that it does not have.
    pub misses: u64,
    /// Paths whose NAR is packed in a way that we cannot unpack.
    pub compressed: u64,
    /// Narinfos that were of no use for another reason.
    pub refused: u64,
    /// Questions without an answer.
    pub failures: u64,
    /// Paths that it was not waited for any longer, because it is announced and gave nothing so far.
    pub left: u64,
}

impl Answers {
    pub(super) fn count(&mut self, answer: Answer) {
        let count = match answer {
            Answer::Hit => &mut self.hits,
            Answer::Miss => &mut self.misses,
            Answer::Compressed => &mut self.compressed,
            Answer::Refused => &mut self.refused,
            Answer::Failure => &mut self.failures,
            Answer::Left => &mut self.left,
        };
        *count += 1;
    }

    /// Each with a word for metrics.
    pub fn by_kind(&self) -> [(&'static str, u64); 6] {
        [
            ("hit", self.hits),
            ("miss", self.misses),
            ("compressed", self.compressed),
            ("refused", self.refused),
            ("failure", self.failures),
            ("left", self.left),
        ]
    }
}

/// A plain cache, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheStatus {
    /// `http://HOST/PREFIX`.
    pub url: String,
    /// The address that HOST stands for.
    pub address: String,
    /// Whether it is known from the network, not from the settings.
    pub announced: bool,
    /// What is known of it.
    pub state: CacheState,
    /// When it was last probed.
    pub probed_seconds_ago: Option<u64>,
    /// What it has answered.
    #[serde(flatten)]
    pub answers: Answers,
}

impl Entry {
    pub(super) fn status(&self, now: Instant) -> CacheStatus {
        let ago = |at| now.saturating_duration_since(at);
        CacheStatus {
            url: self.cache.to_string(),
            address: self.cache.address.to_string(),
            announced: self.cache.announced,
            state: self.state,
            probed_seconds_ago: self.probed_at.map(ago).as_ref().map(Duration::as_secs),
            answers: self.answers,
        }
    }
}
