//! What was last seen of the database: only changes are told, and what lasts is told from what passes.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::{database::LASTS_AFTER, database_error::DatabaseError, lock};

/// How the store was last seen.
#[derive(Debug, Clone)]
pub enum StoreStatus {
    /// In order.
    Available,
    /// The database holds nothing, for that reason.
    Unavailable(Arc<DatabaseError>),
    /// A request has been running for that long.
    Stuck(Duration),
}

impl fmt::Display for StoreStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available => f.write_str("available"),
            Self::Unavailable(error) => write!(f, "unavailable: {}", Chain(&**error)),
            Self::Stuck(time) => write!(f, "no answer for {} s", time.as_secs()),
        }
    }
}

/// What was last seen of the database, so that only changes are told.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<LastSeen>);

#[derive(Debug, Default)]
struct LastSeen {
    error: Option<Arc<DatabaseError>>,
    stuck: bool,
    /// The first and the last of the failures in a row.
    failures: Option<(Instant, Instant)>,
    /// Whether the last of them holds until somebody does something.
    is_certain: bool,
}

impl Health {
    pub(super) fn worked(&self) {
        let mut last = lock(&self.0);
        last.failures = None;
        last.is_certain = false;
        if last.error.take().is_some() || std::mem::take(&mut last.stuck) {
            log::info!("the Nix database is available again");
        }
    }

    pub(super) fn failed(&self, error: DatabaseError) -> Arc<DatabaseError> {
        let error = Arc::new(error);
        lock(&self.0).note_failure(Instant::now(), &error);
        if error.is_transient() {
            log::debug!(reason:% = Chain(&*error); "no answer of the Nix database");
            return error;
        }
        let before = lock(&self.0).error.replace(Arc::clone(&error));
        match before {
            None => {
                log::warn!(reason:% = Chain(&*error); "nothing is held: {}", Chain(&*error));
            }
            Some(before) if before.to_string() != error.to_string() => {
                log::info!(reason:% = Chain(&*error); "still nothing is held: {}", Chain(&*error));
            }
            Some(_) => {}
        }
        error
    }

    /// Whether nothing can be read, and that is not over in a moment.
    pub(super) fn is_lasting(&self) -> bool {
        let last = lock(&self.0);
        let failing = last
            .failures
            .is_some_and(|(first, latest)| latest - first >= LASTS_AFTER);
        last.stuck || last.is_certain || failing
    }

    pub(super) fn stuck(&self, since: Duration) {
        let mut last = lock(&self.0);
        if !std::mem::replace(&mut last.stuck, true) {
            log::warn!(
                "nothing is held: the store has not answered for {} s",
                since.as_secs()
            );
        }
    }

    pub(super) fn status(&self) -> StoreStatus {
        match &lock(&self.0).error {
            Some(error) => StoreStatus::Unavailable(Arc::clone(error)),
            None => StoreStatus::Available,
        }
    }
}

impl LastSeen {
    /// Failures that come and go are in a row only if nothing else can have been between them. A writer
    /// at work shows that a missing or broken database has been replaced.
    fn note_failure(&mut self, now: Instant, error: &DatabaseError) {
        let was_certain = std::mem::replace(&mut self.is_certain, error.is_lasting());
        let goes_on = |latest| !was_certain && now - latest < LASTS_AFTER;
        let before = self
            .failures
            .filter(|&(_, latest)| !error.is_transient() || goes_on(latest));
        let first = before.map_or(now, |(first, _)| first);
        self.failures = Some((first, now));
    }
}

/// An error with all that caused it, in one line.
pub(super) struct Chain<'a>(pub(super) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut at = self.0;
        while let Some(source) = at.source() {
            write!(f, ": {source}")?;
            at = source;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_at_work_ends_what_was_wrong_before() {
        let health = Health::default();
        let path = || std::path::PathBuf::from("/db");
        health.failed(DatabaseError::Missing { path: path() });
        assert!(health.is_lasting());
        health.failed(DatabaseError::Unsettled { path: path() });
        assert!(!health.is_lasting());
        let (first, latest) = lock(&health.0).failures.expect("failures");
        assert_eq!(first, latest, "another row");
        health.failed(DatabaseError::Missing { path: path() });
        assert!(health.is_lasting());
    }
}
