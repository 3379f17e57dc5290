//! What outlives the process: our instance, the known peers, and bans.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    finder::{Memory, peer_health::Ban},
    protocol::discovery::PersistedState,
    system::{journal::chain, state_file::StateFile},
};

/// Raised with every change that an older reader would misread.
const VERSION: u32 = 3;

/// Who is known by name is worth remembering for so long.
const NAMED_FOR: Duration = Duration::from_secs(600);

/// The file's content. A defect of any kind discards it whole.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Content {
    version: u32,
    saved_at_unix: u64,
    discovery: PersistedState,
    bans: Vec<Ban>,
    named: Vec<SocketAddr>,
}

/// The state of the last process.
pub(super) struct Earlier {
    pub(super) discovery: PersistedState,
    /// How long ago it ended.
    pub(super) asleep: Duration,
    /// Bans that have not run out since.
    pub(super) bans: Vec<Ban>,
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
        bans,
        mut named,
        ..
    } = decode(&bytes)?;
    let asleep = Duration::from_secs(unix_now().checked_sub(saved_at_unix)?);
    let bans = bans
        .into_iter()
        .filter_map(|ban| ban.after(asleep))
        .collect();
    if asleep > NAMED_FOR {
        named.clear();
    }
    Some(Earlier {
        discovery,
        asleep,
        bans,
        named,
    })
}

/// Saves for the next process; without the file it starts from nothing.
pub(super) fn save(
    file: &StateFile,
    discovery: PersistedState,
    memory: &Memory,
    named: Vec<SocketAddr>,
) {
    let now = Instant::now();
    let bans = memory.health.bans(now);
    let content = Content {
        version: VERSION,
        saved_at_unix: unix_now(),
        discovery,
        bans,
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
            discovery: PersistedState {
                instance: 7,
                peers: Vec::new(),
            },
            bans: Vec::new(),
            named: Vec::new(),
        };
        let bytes = serde_json::to_vec(&content).expect("serializable");
        assert_eq!(
            decode(&bytes).expect("as saved").discovery,
            content.discovery
        );
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
