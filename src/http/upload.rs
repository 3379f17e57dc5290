//! `limits.upload`: bytes a second served to the LAN, shared fairly between the machines that
//! want them, however many streams each of them has.
//!
//! Fair queueing: every machine has a line of its own, each piece in it a *tag*, the tag of the
//! piece before it (or that of the piece served last by anyone, if there is none) and its own
//! length. The smallest tag is served first. So a machine that has just come is never far behind,
//! and one that wants much is never far ahead.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The bandwidth, and the streams that wait for it.
#[derive(Debug)]
pub struct Upload {
    bytes_per_second: u64,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// When the way out is free again.
    free_at: Instant,
    waiting: BTreeMap<Turn, Arc<Notify>>,
    /// The last tag of each machine that has pieces waiting.
    last_tags: HashMap<IpAddr, u64>,
    /// The tag served last.
    served: u64,
    /// Pieces so far.
    pieces: u64,
}

/// A piece's place: first by tag, then as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    tag: u64,
    number: u64,
}

/// After a pause this much may go out at once.
const BURST: Duration = Duration::from_millis(250);

impl Upload {
    /// A line of this rate, not 0.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            queue: Mutex::new(Queue {
                free_at: Instant::now(),
                waiting: BTreeMap::new(),
                last_tags: HashMap::new(),
                served: 0,
                pieces: 0,
            }),
        }
    }

    /// Waits until `bytes` may go out to `peer`. A caller that stops waiting delays no other.
    pub(super) async fn pay(&self, peer: IpAddr, bytes: usize) {
        let mut place = self.enter(peer, bytes as u64);
        loop {
            match place.look() {
                Look::Go => return,
                Look::Until(due) => tokio::time::sleep_until(due).await,
                Look::Behind => place.first.notified().await,
            }
        }
    }

    fn enter(&self, peer: IpAddr, bytes: u64) -> Place<'_> {
        let first = Arc::new(Notify::new());
        let mut queue = self.queue();
        let before = queue.last_tags.get(&peer).copied().unwrap_or(queue.served);
        let turn = Turn {
            tag: before + bytes,
            number: queue.pieces,
        };
        queue.pieces += 1;
        queue.last_tags.insert(peer, turn.tag);
        queue.waiting.insert(turn, Arc::clone(&first));
        Place {
            upload: self,
            turn,
            bytes,
            first,
            waits: true,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing between the changes of one call can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn leave(&mut self, turn: Turn) {
        self.waiting.remove(&turn);
        if self.waiting.is_empty() {
            self.last_tags.clear();
        } else {
            let served = self.served;
            self.last_tags.retain(|_, tag| *tag > served);
        }
        if let Some((_, first)) = self.waiting.first_key_value() {
            first.notify_one();
        }
    }
}

/// A piece in the queue; out of it when dropped.
struct Place<'a> {
    upload: &'a Upload,
    turn: Turn,
    bytes: u64,
    /// Told when this place may have become the first.
    first: Arc<Notify>,
    waits: bool,
}

enum Look {
    Go,
    /// The first, but the way is not free before then; another may have become the first.
    Until(Instant),
    Behind,
}

impl Place<'_> {
    /// Takes its turn if it has come.
    fn look(&mut self) -> Look {
        let now = Instant::now();
        let mut queue = self.upload.queue();
        let first = queue.waiting.first_key_value();
        if first.is_none_or(|(turn, _)| *turn != self.turn) {
            return Look::Behind;
        }
        let due = queue.free_at.max(now.checked_sub(BURST).unwrap_or(now));
        if due > now {
            return Look::Until(due);
        }
        let takes = self.bytes as f64 / self.upload.bytes_per_second as f64;
        queue.free_at = due + Duration::from_secs_f64(takes);
        queue.served = self.turn.tag;
        queue.leave(self.turn);
        self.waits = false;
        Look::Go
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.upload.queue().leave(self.turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;

    use super::*;

    const KIB: usize = 1 << 10;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([192, 168, 1, number])
    }

    /// Streams of one machine that pay for pieces until time is up; how much they paid for.
    async fn streams(
        upload: &Upload,
        peer: IpAddr,
        count: usize,
        piece: usize,
        until: Instant,
    ) -> usize {
        let paid = Cell::new(0);
        let streams = (0..count).map(|_| async {
            while tokio::time::timeout_at(until, upload.pay(peer, piece))
                .await
                .is_ok()
            {
                paid.set(paid.get() + piece);
            }
        });
        join_all(streams).await;
        paid.get()
    }

    #[tokio::test(start_paused = true)]
    async fn many_streams_share_one_rate() {
        let upload = Upload::new(1 << 20);
        let started = Instant::now();
        let streams = (0..8).map(|_| async {
            for _ in 0..16 {
                upload.pay(peer(1), 64 * KIB).await;
            }
        });
        join_all(streams).await;
        let seconds = started.elapsed().as_secs_f64();
        assert!(
            (7.5..=8.0).contains(&seconds),
            "8 MiB at 1 MiB/s took {seconds} s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_alone_has_the_whole_rate() {
        let upload = Upload::new(1 << 20);
        for count in [1, 20] {
            let until = Instant::now() + Duration::from_secs(16);
            let paid = streams(&upload, peer(1), count, 256 * KIB, until).await;
            assert!(
                paid.abs_diff(16 << 20) <= 512 * KIB,
                "{count} streams: {paid}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn machines_get_the_same_however_many_streams_and_however_large_pieces_they_have() {
        let upload = Upload::new(1 << 20);
        for (many, one) in [
            (256 * KIB, 256 * KIB),
            (16 * KIB, 256 * KIB),
            (256 * KIB, 16 * KIB),
        ] {
            let until = Instant::now() + Duration::from_secs(40);
            let (first, second, third) = tokio::join!(
                streams(&upload, peer(1), 20, many, until),
                streams(&upload, peer(2), 1, one, until),
                streams(&upload, peer(3), 8, many, until),
            );
            let all = first + second + third;
            assert!(
                all.abs_diff(40 << 20) <= 512 * KIB,
                "{all} bytes in 40 s at 1 MiB/s"
            );
            for paid in [first, second, third] {
                let share = paid as f64 / (all as f64 / 3.0);
                assert!((0.95..1.05).contains(&share), "{first} {second} {third}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_late_does_not_wait_for_what_others_have_waiting() {
        let upload = Upload::new(1 << 20);
        let until = Instant::now() + Duration::from_secs(60);
        let late = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let asked = Instant::now();
            upload.pay(peer(2), 256 * KIB).await;
            asked.elapsed()
        };
        let (_, waited) = tokio::join!(streams(&upload, peer(1), 40, 256 * KIB, until), late);
        // One piece is on its way, and one more may have the same tag.
        assert!(waited <= Duration::from_millis(500), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_keeps_nobody_waiting() {
        let upload = Upload::new(1 << 20);
        upload.pay(peer(1), 1 << 20).await;
        for round in 0..3 {
            // The first of all in the queue, one in the middle, and the last.
            let mut waiting: Vec<_> = (1..=3)
                .map(|number| Box::pin(upload.pay(peer(number), 512 * KIB)))
                .collect();
            for pay in &mut waiting {
                assert!(futures_util::poll!(pay).is_pending());
            }
            drop(waiting.remove(round));
            let began = Instant::now();
            tokio::time::timeout(Duration::from_secs(5), join_all(waiting))
                .await
                .expect("their turns");
            assert!(
                began.elapsed() <= Duration::from_millis(2_000),
                "{:?}",
                began.elapsed()
            );
        }
        let queue = upload.queue();
        assert!(queue.waiting.is_empty() && queue.last_tags.is_empty());
    }
}
