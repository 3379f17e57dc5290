//! What outlives the process: who we are to our peers, and who they are.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::{
    finder::{Memory, standing::Ban},
    protocol::{PeerAddr, discovery::Saved},
    system::{journal::chain, state_file::StateFile},
};

/// Raised with every change that an older reader would misread.
const VERSION: u32 = 2;

/// Who is known by name is worth remembering for so long.
const NAMED_FOR: Duration = Duration::from_secs(600);

/// The file's content. A defect of any kind discards it whole.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Content {
    version: u32,
    saved_at_unix: u64,
    discovery: Saved,
    salt: u64,
    bans: Vec<Ban>,
    summaries: Vec<SavedSummary>,
    named: Vec<SocketAddr>,
}

/// What a peer shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SavedSummary {
    peer: SocketAddr,
    /// Until it is to be fetched anew.
    seconds_left: u64,
    /// As the peer sends it, in base64.
    content: String,
}

impl SavedSummary {
    fn after(self, asleep: Duration) -> Option<(PeerAddr, Duration, Vec<u8>)> {
        let left = Duration::from_secs(self.seconds_left).checked_sub(asleep)?;
        let peer = PeerAddr::new(self.peer).ok()?;
        Some((peer, left, BASE64.decode(self.content.as_bytes()).ok()?))
    }
}

/// The state of the last process.
pub(super) struct Earlier {
    pub(super) discovery: Saved,
    /// Of the numbers of our rules.
    pub(super) salt: u64,
    /// How long ago it ended.
    pub(super) asleep: Duration,
    /// Bans that have not run out since.
    pub(super) bans: Vec<Ban>,
    /// Summaries that are still good: whose, for how long, and what they say.
    pub(super) summaries: Vec<(PeerAddr, Duration, Vec<u8>)>,
    /// Peers that names stood for a moment ago.
    pub(super) named: Vec<SocketAddr>,
}

/// The state of the last process, if there is one.
pub(super) fn load(file: &StateFile) -> Option<Earlier> {
    let bytes = match file.read() {
        Ok(bytes) => bytes?,
        Err(error) => {
            log::debug!("no saved state: {}", chain(&error));
            return None;
        }
    };
    let Content {
        saved_at_unix,
        discovery,
        salt,
        bans,
        summaries,
        mut named,
        ..
    } = decode(&bytes)?;
    let asleep = Duration::from_secs(unix_now().checked_sub(saved_at_unix)?);
    let bans = bans
        .into_iter()
        .filter_map(|ban| ban.after(asleep))
        .collect();
    let summaries = summaries
        .into_iter()
        .filter_map(|summary| summary.after(asleep))
        .collect();
    if asleep > NAMED_FOR {
        named.clear();
    }
    Some(Earlier {
        discovery,
        salt,
        asleep,
        bans,
        summaries,
        named,
    })
}

/// Saves for the next process; without the file it starts from nothing.
pub(super) fn save(
    file: &StateFile,
    discovery: Saved,
    salt: u64,
    memory: &Memory,
    named: Vec<SocketAddr>,
) {
    let now = Instant::now();
    let bans = memory.standing.bans(now);
    let summaries = memory.summaries.save(now).into_iter();
    let summaries = summaries.map(|(peer, left, bytes)| SavedSummary {
        peer: peer.socket_addr(),
        seconds_left: left.as_secs(),
        content: BASE64.encode(&bytes),
    });
    let content = Content {
        version: VERSION,
        saved_at_unix: unix_now(),
        discovery,
        salt,
        bans,
        summaries: summaries.collect(),
        named,
    };
    let written = match serde_json::to_vec(&content) {
        Ok(bytes) => file
            .write(&bytes)
            .map_err(|error| chain(&error).to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = written {
        log::debug!("the state is not saved: {error}");
    }
}

fn decode(bytes: &[u8]) -> Option<Content> {
    serde_json::from_slice::<Content>(bytes)
        .ok()
        .filter(|content| content.version == VERSION)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_any_defect_discards_it() {
        let content = Content {
            version: VERSION,
            saved_at_unix: 1,
            discovery: Saved {
                instance: 7,
                peers: Vec::new(),
            },
            salt: 8,
            bans: Vec::new(),
            summaries: vec![SavedSummary {
                peer: "192.168.1.7:12304".parse().expect("address"),
                seconds_left: 9,
                content: BASE64.encode(b"content"),
            }],
            named: Vec::new(),
        };
        let bytes = serde_json::to_vec(&content).expect("serializable");
        assert_eq!(
            decode(&bytes).expect("as saved").discovery,
            content.discovery
        );
        let summary = decode(&bytes).expect("as saved").summaries.remove(0);
        assert_eq!(summary, content.summaries[0]);
        assert_eq!(summary.clone().after(Duration::from_secs(10)), None);
        let (_, left, bytes_of_it) = summary.after(Duration::from_secs(4)).expect("good");
        assert_eq!((left.as_secs(), &bytes_of_it[..]), (5, &b"content"[..]));
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_none(), "cut at {end}");
        }
        let later = Content {
            version: VERSION + 1,
            ..content
        };
        assert!(decode(&serde_json::to_vec(&later).expect("serializable")).is_none());
        assert!(decode(b"\xff\0").is_none());
    }
}
