//! Answers the asks of peers from the local store.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{sync::mpsc, time::timeout};

use super::beat::{self, Beat};
use crate::{
    http::App,
    lan::LanHandle,
    protocol::{PathState, discovery::PeerRequest},
};

/// Asks that are with the store at the same time.
const AT_ONCE: usize = 64;

/// A peer that cannot be answered by then is told so, and asks again.
const DECIDED_WITHIN: Duration = Duration::from_millis(5);

/// An old peer asks once, and listens for 50 ms.
const DECIDED_FOR_OLD_WITHIN: Duration = Duration::from_millis(45);

/// Answers until there are no more asks.
pub(super) async fn answer(
    requests: mpsc::Receiver<PeerRequest>,
    lan: LanHandle,
    app: Arc<App>,
    beat: Arc<Beat>,
) {
    let requests = stream::unfold(requests, |mut requests| async {
        let request = requests.recv().await?;
        Some((request, requests))
    });
    let answering = requests.for_each_concurrent(AT_ONCE, |request| {
        let (lan, app) = (&lan, &app);
        async move {
            app.activity.touch();
            let states = states(app, &request).await;
            lan.answer(&request, &states, app.nar_streams());
        }
    });
    let beating = async {
        let mut every = tokio::time::interval(beat::EVERY);
        loop {
            every.tick().await;
            beat.beat();
        }
    };
    tokio::select! {
        () = answering => {}
        () = beating => {}
    }
}

/// The state of each path that is asked for.
async fn states(app: &App, request: &PeerRequest) -> Vec<PathState> {
    let hashes = &request.hashes;
    let all = |state| vec![state; hashes.len()];
    let service = app.service();
    let Some(finder) = service.finder() else {
        return all(PathState::Absent);
    };
    let holdings = finder.holdings();
    let asked = holdings.store.which_shared(hashes.clone(), &holdings.share);
    let within = if request.is_repeated() {
        DECIDED_WITHIN
    } else {
        DECIDED_FOR_OLD_WITHIN
    };
    match timeout(within, asked).await {
        Ok(Ok(shared)) => {
            let state = |shared| {
                if shared {
                    PathState::Present
                } else {
                    PathState::Absent
                }
            };
            shared.into_iter().map(state).collect()
        }
        Ok(Err(error)) => {
            log::debug!(count = hashes.len(); "no answer from the store: {error}");
            all(PathState::Absent)
        }
        Err(_) => all(PathState::Undecided),
    }
}
