//! Work that goes on when the lookup that began it has ended: requests that are open still, and
//! connection attempts to peers that do not answer.

use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{Finder, peer_health::Success};
use crate::protocol::PeerAddr;

/// Such work that waits to be taken up; further work is dropped.
pub const MOST_WAITING: usize = 64;

/// Such work at the same time.
const AT_ONCE: usize = 128;

/// From one connection attempt to the next.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// Does what comes, until nobody can send anything.
pub async fn run(mut tasks: mpsc::Receiver<BoxFuture<'static, ()>>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = under_way.next() => {}
            task = tasks.recv(), if under_way.len() < AT_ONCE => match task {
                Some(task) => under_way.push(task),
                None => return,
            }
        }
    }
}

impl Finder {
    /// Has `task` done after the lookup that began it, if there is room.
    pub(super) fn finish_later(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let tasks = &self.0.background.tasks;
        tasks.try_send(task.boxed()).is_ok()
    }

    /// A lookup wants `peer`, which does not answer: attempts to connect leave until it does, or
    /// until the burst is over.
    pub(super) fn reconnect(&self, peer: PeerAddr) {
        let health = &self.memory().health;
        if !health.begin_reconnecting(Instant::now(), peer) {
            return;
        }
        let finder = self.clone();
        if !self.finish_later(async move { finder.attempt_connections(peer).await }) {
            health.end_reconnecting(peer);
        }
    }

    async fn attempt_connections(&self, peer: PeerAddr) {
        let health = &self.memory().health;
        let mut attempts = FuturesUnordered::new();
        let mut tick = interval(CONNECT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !health.ends_reconnecting(Instant::now(), peer) {
            tokio::select! {
                Some(answers) = attempts.next() => if answers {
                    health.record_success(peer, Success::Transport { at: Instant::now() });
                },
                _ = tick.tick() => {
                    let client = self.client().clone();
                    attempts.push(async move { client.is_reachable(peer).await });
                }
            }
        }
    }
}
