//! What keeps the daemon up: the idle clock, shared by everything that counts as work.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::idle::{Connection, IdleClock};

/// The idle clock, shared. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Mutex<IdleClock>,
    /// The deadline may have come into being, or nearer.
    nearer: Notify,
}

/// A request whose answer is not complete; there is no deadline while there is one.
#[derive(Debug)]
pub struct OpenRequest(Activity);

/// A connection of this machine, which may ask more.
#[derive(Debug)]
pub struct LoopbackConnection {
    activity: Activity,
    connection: Option<Connection>,
}

impl Activity {
    /// Armed from now on; without a timeout it never runs out.
    pub fn new(timeout: Option<Duration>) -> Self {
        let clock = Mutex::new(IdleClock::new(Instant::now(), timeout));
        Self(Arc::new(Shared {
            clock,
            nearer: Notify::new(),
        }))
    }

    /// Another timeout from now on.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.clock().set_timeout(timeout);
        self.0.nearer.notify_one();
    }

    /// Work that takes no time, such as a lookup of a peer.
    pub fn touch(&self) {
        self.clock().touch(Instant::now());
    }

    /// A request that counts begins, on a connection of this machine or of another one.
    pub(super) fn open(&self, connection: Option<&LoopbackConnection>) -> OpenRequest {
        let now = Instant::now();
        let mut clock = self.clock();
        clock.opened(now);
        if let Some(connection) = connection.and_then(|open| open.connection.as_ref()) {
            clock.loopback_request(now, connection);
        }
        OpenRequest(self.clone())
    }

    /// A connection of this machine begins.
    pub(super) fn connect_loopback(&self) -> LoopbackConnection {
        let connection = Some(self.clock().loopback_connected(Instant::now()));
        LoopbackConnection {
            activity: self.clone(),
            connection,
        }
    }

    /// Returns once there has been nothing to do for the whole timeout.
    pub async fn idle(&self) {
        loop {
            let deadline = self.clock().deadline();
            let nearer = self.0.nearer.notified();
            match deadline {
                Some(at) if at <= Instant::now() => return,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = nearer => {}
                },
                None => nearer.await,
            }
        }
    }

    fn clock(&self) -> MutexGuard<'_, IdleClock> {
        // The clock is whole between any two of its calls.
        self.0.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.clock().closed(Instant::now());
        self.0.0.nearer.notify_one();
    }
}

impl Drop for LoopbackConnection {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.activity.clock().loopback_disconnected(connection);
        }
        self.activity.0.nearer.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_request_holds_off_the_end_and_its_end_arms_it() {
        let activity = Activity::new(Some(Duration::from_millis(30)));
        let open = activity.open(None);
        let idle = tokio::spawn({
            let activity = activity.clone();
            async move { activity.idle().await }
        });
        let early = tokio::time::timeout(Duration::from_millis(120), activity.idle()).await;
        assert!(early.is_err(), "idle with a request open");
        drop(open);
        tokio::time::timeout(Duration::from_secs(5), idle)
            .await
            .expect("idle in time")
            .expect("no panic");
    }

    #[tokio::test]
    async fn a_shorter_timeout_counts_at_once() {
        let activity = Activity::new(None);
        let idle = tokio::spawn({
            let activity = activity.clone();
            async move { activity.idle().await }
        });
        activity.set_timeout(Some(Duration::from_millis(10)));
        tokio::time::timeout(Duration::from_secs(5), idle)
            .await
            .expect("idle in time")
            .expect("no panic");
    }
}
