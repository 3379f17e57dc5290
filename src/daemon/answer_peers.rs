//! Answers the asks of peers from the local store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{sync::mpsc, time};

use super::beat::{self, Beat};
use crate::{
    http::App,
    lan::LanHandle,
    protocol::{PathState, discovery::PeerRequest},
};

/// Asks that are with the store at the same time.
const AT_ONCE: usize = 64;

/// An old peer asks once, and listens for 50 ms: so long the store may take to decide.
const OLD_PEERS_WAIT: Duration = Duration::from_millis(45);

/// Pause before the store is asked again for an old peer.
const PAUSE: Duration = Duration::from_millis(2);

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
            let states = states(app, &request).await;
            // Who has nothing of what everyone is asked for may sleep again soon.
            if !request.is_broadcast() || states.contains(&PathState::Present) {
                app.activity.touch();
            }
            lan.answer(&request, &states, app.nar_streams());
        }
    });
    let beating = async {
        let mut every = time::interval(beat::EVERY);
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
    let hashes = request.hashes.clone();
    let service = app.service();
    let Some(finder) = service.finder() else {
        return vec![PathState::Absent; hashes.len()];
    };
    let holdings = finder.holdings();
    let (store, began) = (&holdings.store, Instant::now());
    loop {
        let asked = store.which_shared(hashes.clone(), &holdings.share);
        let states = asked.await;
        let is_decided = request.is_repeated() || !states.contains(&PathState::Undecided);
        if is_decided || began.elapsed() >= OLD_PEERS_WAIT {
            return states;
        }
        time::sleep(PAUSE).await;
    }
}
