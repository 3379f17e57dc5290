//! Who shares this path, and who is there at all: a state machine without I/O.
//!
//! Inputs are a time and an event; outputs are [`Action`]s. Nothing is remembered of what others
//! have: each lookup asks, and each answer is exact at the moment when it is sent.
//!
//! **A lookup** is in one of three stages, and ends with the last or when it is cancelled:
//!
//! | stage | asks | goes on when |
//! |---|---|---|
//! | unicast | every peer, by datagrams of its own; of more than 64 live ones a sample and those that no broadcast reaches | all that are waited for have said no |
//! | broadcast (only with more than 64) | everyone on the interfaces where a peer was heard, four copies | the answers of all had time to come |
//! | old | the old peers, which answer only with what they have | an old peer had its 50 ms |
//!
//! **A peer** (an address in the table) is
//!
//! | state | how it gets there | what it means |
//! |---|---|---|
//! | heard | it answered a broadcast of ours | asked; confirmed by a unicast ask |
//! | live | it answered a unicast ask: it has our random id | asked and waited for |
//! | silent | it let all copies of an ask and `wake_timeout` pass | asked, not waited for, until it answers |
//! | old | it sends responses of the first peerix | asked in the last stage alone |
//!
//! Each peer has one queue. Hashes that are wanted while an ask is on its way travel together in
//! the next one, which leaves when that was answered, or 1 ms after it: a slow peer delays no
//! other. An ask without an answer is repeated three times, after 1, 2 and 4 retransmission
//! times of that peer.
//!
//! **A burst** begins with the first lookup after a quiet minute, or when a network has come. It
//! sends the discovery broadcast (again after 10 and 40 ms, and then every 10 s of work), and has
//! 350 ms for all its lookups together to wait for what does not answer ([`WaitBudget`]): what a
//! peer takes beyond 5 ms, unless it is configured or gave a path lately, peers that may be
//! asleep, and in the first burst of a process anyone. When that is used up, peers are asked and
//! not waited for.
//!
//! All that strangers can make grow is bounded: lookups, ids, peers, sources, candidates.
//!
//! [`WaitBudget`]: super::WaitBudget

mod asks;
mod broadcast;
mod burst;
mod counters;
mod delayed_answers;
mod events;
mod ids;
mod incoming;
mod lookup;
mod peer;
mod peer_info;
mod peer_table;
mod persisted_state;
mod rate_limit;
mod slots;
mod state_machine;
mod unicast;
mod waiting;

pub use counters::{Counters, Reject};
pub use events::{Action, Arrival, End, Link, LookupId, Outcome, PeerRequest, ReturnPath, Scope};
pub use lookup::MAX_CANDIDATES;
pub use peer_info::{Kind, PeerInfo};
pub use persisted_state::{PersistedPeer, PersistedState};
pub use state_machine::{Discovery, MAX_LOOKUPS, Settings};

#[cfg(test)]
mod tests;
