//! What names stood for when they were last looked up with success, and what to say about it.

use std::{collections::HashMap, error::Error, net::SocketAddr};

use super::{
    lookup::LookupError,
    wanted::{Wanted, cache, caches_by_address},
};
use crate::{
    config::Config,
    protocol::{PeerAddr, PlainCache},
};

/// Addresses by what was looked up.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: HashMap<Wanted, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    /// Of the last lookup that found any.
    addresses: Vec<SocketAddr>,
    /// Why the last lookup failed.
    failure: Option<String>,
    /// Of `addresses`, those whose answers are dropped.
    strange: Vec<SocketAddr>,
}

/// What an operator should read, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// Something to mend.
    Warning(String),
    /// It is mended, or it is as on any host now and then.
    Info(String),
}

impl Answers {
    /// Forgets what is not wanted any more.
    pub(super) fn keep(&mut self, wanted: &[Wanted]) {
        self.known.retain(|one, _| wanted.contains(one));
    }

    /// Whether the last lookup of something failed.
    pub(super) fn any_failed(&self) -> bool {
        self.known.values().any(|answer| answer.failure.is_some())
    }

    /// Takes in the end of a lookup; when it fails, the old addresses stay.
    pub(super) fn take(
        &mut self,
        wanted: Wanted,
        found: Result<Vec<SocketAddr>, LookupError>,
        config: &Config,
    ) -> Option<Notice> {
        let name = wanted.to_string();
        let is_peer = !matches!(wanted, Wanted::Cache { .. });
        let answer = self.known.entry(wanted).or_default();
        let addresses = match found {
            Err(error) => {
                let failure = with_causes(&error);
                let is_news = answer.failure.as_ref() != Some(&failure);
                // Interfaces come and go; the next one of that name has another index.
                let is_away = matches!(error, LookupError::NoInterface(_));
                if is_away {
                    answer.addresses.clear();
                }
                let rest = match answer.addresses.as_slice() {
                    [] => "nobody is asked for it".to_owned(),
                    old => format!("still asked: {}", list(old)),
                };
                let notice = format!("cannot find {name} of the settings: {failure}; {rest}");
                answer.failure = Some(failure);
                let notice = if is_away {
                    Notice::Info(notice)
                } else {
                    Notice::Warning(notice)
                };
                return is_news.then_some(notice);
            }
            Ok(addresses) => addresses,
        };
        let is_relief = answer.failure.take().is_some();
        let is_strange = |address: &&SocketAddr| is_peer && !config.allows(address.ip());
        let strange: Vec<SocketAddr> = addresses.iter().filter(is_strange).copied().collect();
        let is_news = !strange.is_empty() && strange != answer.strange;
        let notice = if is_news {
            Some(Notice::Warning(format!(
                "{name} of the settings is at {}, outside of allowed-networks: it is asked, and what \
                 it answers is dropped; right would be to allow its network as well",
                list(&strange)
            )))
        } else {
            is_relief.then(|| Notice::Info(format!("{name} is found: {}", list(&addresses))))
        };
        answer.strange = strange;
        answer.addresses = addresses;
        notice
    }

    /// The peers, in the order of the settings.
    pub(super) fn peers(&self, wanted: &[Wanted]) -> Vec<SocketAddr> {
        let of = |one: &Wanted| match one {
            Wanted::Cache { .. } => None,
            Wanted::Host { .. } | Wanted::Domain(_) => self.known.get(one),
        };
        let found = wanted.iter().filter_map(of);
        found.flat_map(|answer| answer.addresses.clone()).collect()
    }

    /// The plain caches of the settings, each at one address: one host answers as well over
    /// IPv4 as over IPv6, and should be asked once.
    pub(super) fn caches(&self, config: &Config, wanted: &[Wanted]) -> Vec<PlainCache> {
        let named = wanted.iter().filter_map(|one| {
            let Wanted::Cache { url, .. } = one else {
                return None;
            };
            let addresses = &self.known.get(one)?.addresses;
            let v4 = addresses.iter().find(|address| address.is_ipv4());
            let address = PeerAddr::new(*v4.or(addresses.first())?).ok()?;
            Some(cache(url, address))
        });
        let mut caches = caches_by_address(&config.discovery);
        caches.extend(named);
        caches
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    const MOST: usize = 4;
    let mut texts: Vec<String> = addresses
        .iter()
        .take(MOST)
        .map(ToString::to_string)
        .collect();
    if let Some(more) = addresses.len().checked_sub(MOST).filter(|&more| more > 0) {
        texts.push(format!("{more} more"));
    }
    texts.join(", ")
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        let parse = |text: &&str| text.parse().expect("an address");
        texts.iter().map(parse).collect()
    }

    fn wanted(peer: &str) -> (Config, Vec<Wanted>) {
        let text = format!("[discovery]\npeers = [\"{peer}\"]");
        let config = Config::parse(&text).expect("settings");
        let wanted = Wanted::of(&config.discovery, 12_304);
        (config, wanted)
    }

    #[test]
    fn old_addresses_stay_when_dns_fails_and_that_is_said_once() {
        let (config, wanted) = wanted("nas.lan");
        let mut answers = Answers::default();
        let mut take = |found| answers.take(wanted[0].clone(), found, &config);
        let fails = || Err(LookupError::Host(io::Error::other("no server")));
        assert_eq!(
            take(fails()),
            Some(Notice::Warning(
                "cannot find the peer nas.lan:12304 of the settings: the system does not know it: \
                 no server; nobody is asked for it"
                    .into()
            ))
        );
        assert_eq!(take(fails()), None, "the same again");
        let found = addresses(&["10.0.0.7:12304"]);
        let relief = take(Ok(found.clone()));
        assert!(matches!(relief, Some(Notice::Info(_))), "{relief:?}");
        assert_eq!(take(Ok(found.clone())), None);
        let Some(Notice::Warning(warning)) = take(fails()) else {
            panic!("it fails anew")
        };
        assert!(
            warning.ends_with("still asked: 10.0.0.7:12304"),
            "{warning}"
        );
        assert!(answers.any_failed());
        assert_eq!(answers.peers(&wanted), found);
        answers.keep(&[]);
        assert_eq!(answers.peers(&wanted), []);
    }

    #[test]
    fn a_peer_of_an_interface_that_is_away_is_not_asked_and_that_is_no_error() {
        let (config, wanted) = wanted("[fe80::1%eth0]:1");
        let mut answers = Answers::default();
        let mut take = |found| answers.take(wanted[0].clone(), found, &config);
        let away = || Err(LookupError::NoInterface("eth0".into()));
        assert_eq!(
            take(away()),
            Some(Notice::Info(
                "cannot find the peer [fe80::1%eth0]:1 of the settings: there is no interface eth0 \
                 at present; nobody is asked for it"
                    .into()
            ))
        );
        assert_eq!(take(away()), None, "the same again");
        let back = take(Ok(addresses(&["[fe80::1%7]:1"])));
        assert!(matches!(back, Some(Notice::Info(_))), "{back:?}");
        assert!(matches!(take(away()), Some(Notice::Info(_))));
        assert_eq!(answers.peers(&wanted), []);
    }

    #[test]
    fn a_peer_whose_answers_are_dropped_is_told_of() {
        let (config, wanted) = wanted("far.example");
        let mut answers = Answers::default();
        let found = addresses(&["8.8.8.8:12304", "10.0.0.7:12304"]);
        let Some(Notice::Warning(warning)) =
            answers.take(wanted[0].clone(), Ok(found.clone()), &config)
        else {
            panic!("8.8.8.8 is not allowed")
        };
        assert!(
            warning.contains("8.8.8.8:12304, outside of allowed-networks"),
            "{warning}"
        );
        assert_eq!(
            answers.take(wanted[0].clone(), Ok(found.clone()), &config),
            None
        );
        assert_eq!(answers.peers(&wanted), found, "asked all the same");
    }

    #[test]
    fn a_cache_is_taken_once_whatever_addresses_it_has() {
        let (config, wanted) = wanted("http://nas.lan:5000/x");
        let mut answers = Answers::default();
        let found = addresses(&["[fd00::7]:5000", "8.8.8.8:5000", "10.0.0.7:5000"]);
        assert_eq!(answers.take(wanted[0].clone(), Ok(found), &config), None);
        assert_eq!(answers.peers(&wanted), []);
        let caches = answers.caches(&config, &wanted);
        let [cache] = caches.as_slice() else {
            panic!("{caches:?}")
        };
        assert_eq!(cache.address.to_string(), "8.8.8.8:5000");
        assert_eq!(cache.to_string(), "http://nas.lan:5000/x/");
    }
}
