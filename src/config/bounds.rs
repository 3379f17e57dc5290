//! What settings must keep to, whatever their types allow.

use std::{fmt, time::Duration};

use super::{ByteSize, Config, ConfigError, LOOPBACK_CONNECTIONS, units};

/// Entries of `discovery.peers`.
const MOST_PEERS: usize = 512;

impl Config {
    pub(super) fn check_bounds(&self) -> Result<(), ConfigError> {
        let outside = |key, value: &dyn fmt::Display, right| ConfigError::Bounds {
            key,
            value: value.to_string(),
            right,
        };
        let limits = &self.limits;
        if limits.connections < 2 * LOOPBACK_CONNECTIONS {
            return Err(outside(
                "limits.connections",
                &limits.connections,
                "128 or more: 64 of them are kept for loopback",
            ));
        }
        if limits.buffer < ByteSize(1 << 20) {
            return Err(outside(
                "limits.buffer",
                &limits.buffer,
                "\"1MiB\" or more: a NAR stream takes 512KiB",
            ));
        }
        if limits.narinfo < ByteSize(1 << 10) {
            return Err(outside(
                "limits.narinfo",
                &limits.narinfo,
                "\"1KiB\" or more: no narinfo is smaller",
            ));
        }
        if limits.upload.is_some_and(|rate| rate < ByteSize(64 << 10)) {
            return Err(outside(
                "limits.upload",
                &limits.upload.unwrap_or(ByteSize(0)),
                "\"64KiB\" a second or more, or no such key",
            ));
        }
        if limits.drain > Duration::from_secs(4) {
            return Err(outside(
                "limits.drain",
                &units::Spelled(limits.drain),
                "at most \"4s\": the unit is killed after 5s",
            ));
        }
        if limits.stall < Duration::from_millis(100) {
            return Err(outside(
                "limits.stall",
                &units::Spelled(limits.stall),
                "\"100ms\" or more: a busy holder is late that long",
            ));
        }
        if limits.stall_alone < limits.stall || limits.stall_alone > Duration::from_secs(240) {
            return Err(outside(
                "limits.stall-alone",
                &units::Spelled(limits.stall_alone),
                "limits.stall or more, at most \"4min\": Nix gives up after 5min",
            ));
        }
        if self.discovery.timeout > self.discovery.wake_timeout {
            return Err(outside(
                "discovery.timeout",
                &units::Spelled(self.discovery.timeout),
                "at most discovery.wake-timeout",
            ));
        }
        if self.discovery.wake_timeout > Duration::from_secs(5) {
            return Err(outside(
                "discovery.wake-timeout",
                &units::Spelled(self.discovery.wake_timeout),
                "at most \"5s\": Nix waits that long for each first miss",
            ));
        }
        if self.discovery.peers.len() > MOST_PEERS {
            return Err(outside(
                "discovery.peers",
                &format_args!("{} entries", self.discovery.peers.len()),
                "at most 512: each of them is asked in every lookup",
            ));
        }
        if !self.store.database.is_absolute() || !self.store.real_dir().is_absolute() {
            return Err(outside(
                "store",
                &self.store.database.display(),
                "absolute paths",
            ));
        }
        Ok(())
    }
}
