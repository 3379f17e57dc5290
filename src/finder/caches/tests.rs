use std::future::Future;

use super::*;

fn cache(port: u16) -> PlainCache {
    PlainCache {
        address: format!("127.0.0.1:{port}").parse().expect("address"),
        host: format!("cache.lan:{port}"),
        prefix: String::new(),
        announced: false,
    }
}

fn known(caches: impl IntoIterator<Item = PlainCache>) -> Caches {
    let known = Caches::default();
    known.set(caches.into_iter().collect());
    known
}

fn states(caches: &Caches) -> Vec<CacheState> {
    let status = caches.status(Instant::now()).into_iter();
    status.map(|status| status.state).collect()
}

/// Takes what is due and ends it so.
fn probe(caches: &Caches, now: Instant, state: CacheState) -> usize {
    let due = caches.take_due();
    for cache in &due {
        caches.probe_ended(now, cache, state);
    }
    due.len()
}

fn readiness(caches: &Caches, now: Instant) -> Vec<Readiness> {
    let candidates = caches.candidates(now).into_iter();
    candidates.map(|candidate| candidate.readiness).collect()
}

#[test]
fn a_cache_is_probed_when_nix_begins_and_then_once_a_minute() {
    let (caches, start) = (known([cache(1), cache(2)]), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(caches.take_due(), [], "nobody has asked");
    let first = start + FIRST_PROBE_WITHIN;
    let waiting = Readiness::Probed(Some(first));
    assert_eq!(readiness(&caches, start), [waiting; 2]);
    assert_eq!(probe(&caches, start, CacheState::Good), 2);
    for second in 1..60 {
        assert_eq!(readiness(&caches, after(second)), [Readiness::Now; 2]);
        assert_eq!(caches.take_due(), [], "after {second} s");
    }
    assert_eq!(readiness(&caches, after(60)).len(), 2);
    assert_eq!(probe(&caches, after(60), CacheState::Good), 2);
}

#[test]
fn a_cache_that_is_off_is_nobody_s_candidate_but_while_it_is_probed() {
    let (caches, start) = (known([cache(1)]), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    caches.stir(start);
    assert_eq!(probe(&caches, start, CacheState::Off), 1);
    for second in 1..60 {
        assert_eq!(readiness(&caches, after(second)), [], "after {second} s");
    }
    // Not waited for either.
    assert_eq!(readiness(&caches, after(60)), [Readiness::Probed(None)]);
    assert_eq!(probe(&caches, after(60), CacheState::Off), 1);
    // Nix has done something else, and begins anew.
    assert_eq!(readiness(&caches, after(65)), [Readiness::Probed(None)]);
    assert_eq!(probe(&caches, after(65), CacheState::Good), 1);
    assert_eq!(readiness(&caches, after(66)), [Readiness::Now]);
}

#[test]
fn a_failure_is_the_end_until_the_next_probe() {
    let (caches, start) = (known([cache(1)]), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    caches.stir(start);
    probe(&caches, start, CacheState::Good);
    assert_eq!(readiness(&caches, after(4)), [Readiness::Now]);
    caches.answered(after(4), &cache(1), Answer::Hit);
    assert!(!caches.failed(after(4), &cache(1), after(3)));
    assert_eq!(readiness(&caches, after(4)), [Readiness::Now], "it is busy");
    assert!(caches.failed(after(4), &cache(1), after(4)));
    for second in 5..64 {
        assert_eq!(readiness(&caches, after(second)), [], "after {second} s");
    }
    assert_eq!(readiness(&caches, after(64)), [Readiness::Probed(None)]);
}

#[test]
fn a_cache_that_was_good_long_ago_is_unknown() {
    let (caches, start) = (known([cache(1)]), Instant::now());
    caches.stir(start);
    probe(&caches, start, CacheState::Good);
    let later = start + Duration::from_secs(600);
    let until = Some(later + FIRST_PROBE_WITHIN);
    assert_eq!(readiness(&caches, later), [Readiness::Probed(until)]);
    assert_eq!(states(&caches), [CacheState::Unknown]);
}

#[test]
fn what_is_known_survives_a_new_list() {
    let (caches, start) = (known([cache(1), cache(2)]), Instant::now());
    caches.stir(start);
    probe(&caches, start, CacheState::Good);
    caches.set(vec![cache(3), cache(2), cache(2)]);
    assert_eq!(states(&caches), [CacheState::Unknown, CacheState::Good]);
    assert_eq!(caches.at(cache(1).address), None);
    assert_eq!(caches.at(cache(2).address).as_deref(), Some(&cache(2)));
    caches.forget();
    assert_eq!(states(&caches), [CacheState::Unknown; 2]);
    caches.stir(start);
    assert_eq!(caches.take_due().len(), 2, "at once");
}

#[test]
fn there_are_so_many_caches_and_no_more() {
    let caches = known((1..100).map(cache));
    assert_eq!(states(&caches).len(), MOST_CACHES);
    let first = caches.status(Instant::now()).swap_remove(0);
    assert_eq!(first.url, "http://cache.lan:1/");
}

#[test]
fn what_is_no_prefix_is_not_asked() {
    for prefix in [
        "../", "/", "a//", "a/../", "a?x=", "a?/", "a", "%2e%2e/", "a b/", "a#/",
    ] {
        let prefix = prefix.to_owned();
        let odd = PlainCache { prefix, ..cache(1) };
        assert!(!is_sound(&odd), "{odd}");
    }
    for host in ["", "a b", "a\r\nX: y"] {
        let host = host.to_owned();
        assert!(!is_sound(&PlainCache { host, ..cache(1) }));
    }
    for prefix in ["", "a/", "a/b.c/", "a:b/", "~user/"] {
        let prefix = prefix.to_owned();
        assert!(is_sound(&PlainCache { prefix, ..cache(1) }));
    }
}

#[tokio::test]
async fn a_lookup_hears_how_a_probe_ends() {
    let (caches, now) = (known([cache(1), cache(2), cache(3)]), Instant::now());
    caches.stir(now);
    let [one, two, three] = [cache(1), cache(2), cache(3)];
    let mut waiting = std::pin::pin!(async {
        let both = [
            caches.becomes_good(&one),
            caches.becomes_good(&two),
            caches.becomes_good(&three),
        ];
        futures_util::future::join_all(both).await
    });
    let pending = std::future::poll_fn(|context| {
        std::task::Poll::Ready(waiting.as_mut().poll(context).is_pending())
    });
    assert!(pending.await);
    caches.take_due();
    caches.probe_ended(now, &one, CacheState::Good);
    caches.probe_ended(now, &two, CacheState::NoCache);
    caches.set(vec![cache(1), cache(2)]);
    assert_eq!(waiting.await, [true, false, false]);
}

#[test]
fn a_cache_that_is_only_announced_is_trusted_when_it_has_given_a_path() {
    let announced = PlainCache {
        announced: true,
        ..cache(1)
    };
    let (caches, start) = (known([cache(2), announced.clone()]), Instant::now());
    let trust = |now| {
        let candidates = caches.candidates(now).into_iter();
        candidates.map(|it| it.trust).collect::<Vec<_>>()
    };
    assert_eq!(trust(start), [CacheTrust::Configured, CacheTrust::Stranger]);
    caches.answered(start, &announced, Answer::Miss);
    assert_eq!(trust(start), [CacheTrust::Configured, CacheTrust::Stranger]);
    caches.answered(start, &announced, Answer::Hit);
    assert_eq!(trust(start), [CacheTrust::Configured, CacheTrust::HasGiven]);
    let later = start + GIVEN_COUNTS_FOR;
    assert_eq!(trust(later), [CacheTrust::Configured, CacheTrust::Stranger]);
    caches.left(&announced);
    assert_eq!(caches.status(start)[1].answers.left, 1);
}

#[test]
fn a_crowd_of_announcements_keeps_no_honest_cache_out_for_long() {
    let announced = |port| PlainCache {
        announced: true,
        ..cache(port)
    };
    let (caches, start) = (Caches::default(), Instant::now());
    // The settings first, whatever the order.
    caches.set((1..=20).map(announced).chain([cache(99)]).collect());
    assert_eq!(caches.status(start)[0].url, "http://cache.lan:99/");
    let honest = announced(20);
    let mut probes = 0;
    for round in 0..4 {
        let now = start + QUIET * round;
        caches.stir(now);
        for it in caches.take_due() {
            probes += 1;
            let is_there = *it == honest || !it.announced;
            let state = if is_there {
                CacheState::Good
            } else {
                CacheState::Off
            };
            caches.probe_ended(now, &it, state);
        }
    }
    assert!(probes <= 4 * MOST_CACHES, "{probes}");
    let good = |caches: &Caches| {
        let status = caches.status(start).into_iter();
        status
            .filter(|it| it.state == CacheState::Good)
            .map(|it| it.url)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        good(&caches),
        ["http://cache.lan:99/", "http://cache.lan:20/"]
    );
    // And what is announced later does not push it out.
    caches.set((100..200).map(announced).chain([honest]).collect());
    assert_eq!(good(&caches), ["http://cache.lan:20/"]);
}
