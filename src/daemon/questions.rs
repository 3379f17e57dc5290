//! Answers the questions of peers from the local store.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::beat::{self, Beat};
use crate::{
    http::App,
    lan::{LanHandle, Question},
    protocol::Held,
};

/// Questions that are with the store at the same time.
const AT_ONCE: usize = 64;

/// Answers until there are no more questions. Whatever keeps the store from answering, the
/// peer is told that its paths are not here: it has others to ask.
pub(super) async fn answer(
    questions: mpsc::Receiver<Question>,
    lan: LanHandle,
    app: Arc<App>,
    beat: Arc<Beat>,
) {
    let questions = stream::unfold(questions, |mut questions| async {
        let question = questions.recv().await?;
        Some((question, questions))
    });
    let answering = questions.for_each_concurrent(AT_ONCE, |question| {
        let (lan, app) = (&lan, &app);
        async move {
            app.activity.touch();
            let held = which_shared(app, &question).await;
            lan.answer(&question, held);
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

/// Which of the paths are here.
async fn which_shared(app: &App, question: &Question) -> Held {
    let hashes = question.hashes();
    let nothing = Held::of(hashes.iter().map(|_| false));
    let service = app.service();
    let Some(finder) = service.finder() else {
        return nothing;
    };
    let holdings = finder.holdings();
    let asked = holdings
        .store
        .which_shared(hashes.to_vec(), &holdings.share);
    match asked.await {
        Ok(shared) => Held::of(shared),
        Err(error) => {
            log::debug!(count = hashes.len(); "no answer from the store: {error}");
            nothing
        }
    }
}
