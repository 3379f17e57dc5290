//! Answers the questions of peers from the local store.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::beat::{self, Beat};
use crate::{
    http::App,
    lan::{LanHandle, Question},
};

/// Questions that are with the store at the same time.
const AT_ONCE: usize = 64;

/// Answers until there are no more questions. Whatever keeps the store from answering, the
/// peer is told that the path is not here: it has others to ask.
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
            lan.answer(&question, is_shared(app, &question).await);
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

async fn is_shared(app: &App, question: &Question) -> bool {
    let service = app.service();
    let Some(finder) = service.finder() else {
        return false;
    };
    let holdings = finder.holdings();
    match holdings
        .store
        .shared(question.hash(), &holdings.share)
        .await
    {
        Ok(shared) => shared.is_some(),
        Err(error) => {
            log::debug!(hash:% = question.hash(); "no answer from the store: {error}");
            false
        }
    }
}
