//! DNS-SD over mDNS (RFC 6763, RFC 6762): announces this machine while it is awake, and lists
//! peers and plain caches that announce themselves.
//!
//! The crate's own thread speaks mDNS; this is asked from time to time what it has learned.
//! Whatever it does, the rest goes on without it: it is left when the network fills its memory.

mod deafness;
mod services;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use log::debug;
use mdns_sd::{
    IfKind, IfPredicate, Metrics, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

pub(super) use services::Surroundings;
use services::{Announcement, Kind, MOST_SERVICES, Services};

use crate::protocol::PlainCache;

/// Peers.
const PEERIX: &str = "_peerix._tcp.local.";

/// Plain caches, under both of their names.
const CACHES: [&str; 2] = ["_nix_binary_cache._tcp.local.", "_nix-serve._tcp.local."];

/// Multicast DNS.
const PORT: u16 = 5_353;

/// Records that mDNS may remember: four for each of the services we would, and as many again
/// for each of the other services of their hosts. More than that is an attack.
const MOST_RECORDS: i64 = 8 * MOST_SERVICES as i64 * 4;

/// Longest label of DNS.
const LONGEST_LABEL_BYTES: usize = 63;

/// mDNS that says nothing of itself for so long has no end of packets to read.
const METRICS_PATIENCE: Duration = Duration::from_secs(2);

/// Saying goodbye may not take longer.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(300);

/// Why DNS-SD is off.
#[derive(Debug, thiserror::Error)]
pub(super) enum DnsSdError {
    #[error("cannot use UDP port {PORT}: {0}")]
    Port(std::io::Error),
    #[error("mDNS does not work: {0}")]
    Mdns(#[from] mdns_sd::Error),
    #[error("mDNS has ended")]
    Ended,
    #[error("the network announces without end")]
    Flood,
}

/// What is told of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) host_name: String,
    pub(super) instance: u64,
    pub(super) port: u16,
}

/// mDNS at work.
pub(super) struct DnsSd {
    daemon: ServiceDaemon,
    browsed: Vec<(Kind, Receiver<ServiceEvent>)>,
    metrics: Option<(Instant, Receiver<Metrics>)>,
    services: Services,
}

impl DnsSd {
    /// Begins to browse and to announce on the interfaces of `around`.
    pub(super) fn start(own: &Own, around: &Surroundings) -> Result<Self, DnsSdError> {
        try_port().map_err(DnsSdError::Port)?;
        let daemon = ServiceDaemon::new()?;
        let config = around.config.clone();
        let forbidden = IfPredicate::new(move |interface| {
            interface.is_loopback()
                || !config.interfaces.allow(&interface.name)
                || !config.allows(interface.ip())
        });
        daemon.disable_interface(IfKind::Predicate(forbidden))?;
        daemon.register(own.service()?)?;
        let kinds = CACHES.map(|name| (Kind::Cache, name));
        let kinds = kinds.into_iter().chain([(Kind::Peer, PEERIX)]);
        let browsed: Result<Vec<_>, mdns_sd::Error> = kinds
            .map(|(kind, name)| Ok((kind, daemon.browse(name)?)))
            .collect();
        Ok(Self {
            browsed: browsed?,
            daemon,
            metrics: None,
            services: Services::default(),
        })
    }

    /// Takes in what was heard.
    pub(super) fn poll(&mut self, around: &Surroundings) -> Result<(), DnsSdError> {
        for (kind, events) in &self.browsed {
            for event in events.try_iter() {
                match event {
                    ServiceEvent::ServiceResolved(service) => {
                        let announcement = announcement(&service);
                        self.services.announced(*kind, announcement, around);
                    }
                    ServiceEvent::ServiceRemoved(_, full_name) => {
                        self.services.gone(&full_name);
                    }
                    _ => {}
                }
            }
            // The crate ends a subscription whose events pile up.
            if events.is_disconnected() {
                return Err(DnsSdError::Flood);
            }
        }
        self.watch_memory()
    }

    /// The peers that are there.
    pub(super) fn peers(&self) -> Vec<SocketAddr> {
        self.services.peers()
    }

    /// The plain caches that are there.
    pub(super) fn caches(&self) -> Vec<PlainCache> {
        self.services.caches()
    }

    /// The crate bounds nothing of what it remembers.
    fn watch_memory(&mut self) -> Result<(), DnsSdError> {
        if let Some((at, asked)) = &self.metrics {
            let Ok(metrics) = asked.try_recv() else {
                return match asked.is_disconnected() {
                    true => Err(DnsSdError::Ended),
                    false if at.elapsed() > METRICS_PATIENCE => Err(DnsSdError::Flood),
                    false => Ok(()),
                };
            };
            let cached = metrics.iter().filter(|(key, _)| key.starts_with("cached-"));
            if cached.map(|(_, count)| count).sum::<i64>() > MOST_RECORDS {
                return Err(DnsSdError::Flood);
            }
        }
        self.metrics = Some((Instant::now(), self.daemon.get_metrics()?));
        Ok(())
    }

    /// As [`Self::stop`], when it does not listen any more to what it is told.
    pub(super) async fn abandon(self) {
        match deafness::deafen(PORT) {
            Ok(sockets) => debug!("{sockets} sockets of mDNS hear nothing any more"),
            Err(error) => debug!("mDNS goes on hearing: {error}"),
        }
        self.stop().await;
    }

    /// Says goodbye, in a moment or not at all.
    pub(super) async fn stop(self) {
        let Ok(ended) = self.daemon.shutdown() else {
            return;
        };
        if timeout(GOODBYE_PATIENCE, ended.recv_async()).await.is_err() {
            debug!("mDNS has said no goodbye in time");
        }
    }
}

impl Own {
    /// The host's target is a name of our own: `HOST.local` may be another responder's.
    fn service(&self) -> Result<ServiceInfo, mdns_sd::Error> {
        let id = format!("{:016x}", self.instance);
        let target = format!("peerix-{id}.local.");
        let properties = [("id", id.as_str()), ("path", "/local")];
        let label = label(&self.host_name);
        let service = ServiceInfo::new(PEERIX, &label, &target, (), self.port, &properties[..])?;
        Ok(service.enable_addr_auto())
    }
}

/// The first part of a host name, as the name of an instance.
fn label(host_name: &str) -> String {
    let first = host_name.split('.').next().unwrap_or_default();
    let is_fine = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
    let label: String = first
        .chars()
        .filter(is_fine)
        .take(LONGEST_LABEL_BYTES)
        .collect();
    if label.is_empty() {
        "peerix".into()
    } else {
        label
    }
}

/// The crate says nothing when it cannot bind its sockets. Other responders share the port.
fn try_port() -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())
}

fn announcement(service: &ResolvedService) -> Announcement {
    let address = |scoped: &ScopedIp| match scoped {
        ScopedIp::V6(v6) => (scoped.to_ip_addr(), v6.scope_id().index),
        _ => (scoped.to_ip_addr(), 0),
    };
    let text = |key| service.get_property_val_str(key).map(str::to_owned);
    Announcement {
        full_name: service.get_fullname().to_owned(),
        host: service.get_hostname().to_owned(),
        port: service.get_port(),
        addresses: service.get_addresses().iter().map(address).collect(),
        id: text("id"),
        path: text("path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_after_the_host() {
        for (host, name) in [
            ("nixos", "nixos"),
            ("nas.example.org", "nas"),
            ("", "peerix"),
            ("näs ", "ns"),
            (&"a".repeat(80), &"a".repeat(63)),
        ] {
            assert_eq!(label(host), name);
        }
    }

    #[test]
    fn we_are_announced_with_our_instance_and_path() {
        let own = Own {
            host_name: "nas".into(),
            instance: 0xab,
            port: 12_304,
        };
        let service = own.service().expect("a service");
        assert_eq!(service.get_fullname(), "nas._peerix._tcp.local.");
        assert_eq!(service.get_hostname(), "peerix-00000000000000ab.local.");
        assert_eq!(service.get_property_val_str("id"), Some("00000000000000ab"));
        assert_eq!(service.get_property_val_str("path"), Some("/local"));
        assert_eq!(service.get_port(), 12_304);
    }
}
