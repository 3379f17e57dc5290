//! Asks the system and DNS. A request that takes too long has failed; no lookup of a path waits for it.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hickory_resolver::{
    TokioResolver,
    config::LookupIpStrategy,
    lookup_ip::LookupIp,
    net::NetError,
    proto::rr::{Name, RData},
};
use nix::{errno::Errno, net::if_::if_nametoindex};
use tokio::{sync::Semaphore, time::timeout};

use super::wanted::Wanted;
use crate::{
    config::{HostName, PeerName, ZonedAddress},
    protocol,
};

/// What peers of a domain are called.
const SERVICE: &str = "_peerix._tcp";

/// A DNS server that takes longer is not there.
const DNS_PATIENCE: Duration = Duration::from_secs(2);

/// getaddrinfo(3) may ask several servers, and mDNS for 5 s.
const HOST_PATIENCE: Duration = Duration::from_secs(6);

/// All records of one domain.
const DOMAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Targets of a domain; further ones are left out.
const MOST_TARGETS: usize = 256;

/// Targets that are looked up at the same time.
const TARGETS_AT_ONCE: usize = 8;

/// Addresses of one name; further ones are left out.
const MOST_ADDRESSES: usize = 16;

/// Threads that may hang in getaddrinfo(3), which cannot be told to stop.
const MOST_HANGING: usize = 4;

/// Why a name stands for nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("the system does not know it")]
    Host(#[source] io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("{MOST_HANGING} earlier lookups still have no answer")]
    Busy,
    #[error("cannot use /etc/resolv.conf")]
    ResolvConf(#[source] NetError),
    #[error("DNS has no SRV records for {SERVICE}.{0}")]
    Records(HostName, #[source] NetError),
    #[error("the SRV records for {SERVICE}.{0} name no host with an address")]
    NoTarget(HostName),
    #[error("it has no address")]
    NoAddress,
    #[error("there is no interface {0} at present")]
    NoInterface(String),
    #[error("cannot look for the interface {0}")]
    Interface(String, #[source] Errno),
}

/// Looks names up. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lookups {
    hanging: Arc<Semaphore>,
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self {
            hanging: Arc::new(Semaphore::new(MOST_HANGING)),
        }
    }

    /// Where `wanted` is at present: in the order of preference, never empty.
    pub(super) async fn look_up(&self, wanted: &Wanted) -> Result<Vec<SocketAddr>, LookupError> {
        match wanted {
            Wanted::Host { name, port } => self.host(name, *port).await,
            Wanted::Cache { url, name } => self.host(name, url.port).await,
            Wanted::Domain(domain) => {
                let resolver = system_resolver()?;
                timeout(DOMAIN_PATIENCE, srv(&resolver, domain))
                    .await
                    .map_err(|_| LookupError::Late(DOMAIN_PATIENCE))?
            }
        }
    }

    /// As other programs of this machine see it: /etc/hosts, DNS, mDNS, what nsswitch.conf says.
    async fn host(&self, name: &PeerName, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let name = match name {
            PeerName::Host(name) => name,
            PeerName::Zoned(address) => return on_interface(address, port),
        };
        let free = Arc::clone(&self.hanging).acquire_owned();
        let permit = timeout(HOST_PATIENCE, free).await;
        let Ok(Ok(permit)) = permit else {
            return Err(LookupError::Busy);
        };
        let text = name.as_str().to_owned();
        let looking = tokio::task::spawn_blocking(move || {
            // Held until the system answers, also when the result is not wanted any more.
            let _permit = permit;
            let found = (text.as_str(), port).to_socket_addrs()?;
            Ok(found.take(MOST_ADDRESSES).collect::<Vec<_>>())
        });
        let found = timeout(HOST_PATIENCE, looking)
            .await
            .map_err(|_| LookupError::Late(HOST_PATIENCE))?
            .map_err(|panicked| LookupError::Host(io::Error::other(panicked)))?
            .map_err(LookupError::Host)?;
        let found = usable(found);
        if found.is_empty() {
            return Err(LookupError::NoAddress);
        }
        Ok(found)
    }
}

/// The address, with the index that its interface has now.
pub(super) fn on_interface(
    address: &ZonedAddress,
    port: u16,
) -> Result<Vec<SocketAddr>, LookupError> {
    let name = || address.interface().to_owned();
    let index = if_nametoindex(address.interface()).map_err(|errno| match errno {
        Errno::ENODEV => LookupError::NoInterface(name()),
        errno => LookupError::Interface(name(), errno),
    })?;
    Ok(vec![SocketAddrV6::new(address.ip(), port, 0, index).into()])
}

/// What the system is set up to ask, as it is now: the network may have changed.
fn system_resolver() -> Result<TokioResolver, LookupError> {
    let mut builder = TokioResolver::builder_tokio().map_err(LookupError::ResolvConf)?;
    let options = builder.options_mut();
    options.timeout = DNS_PATIENCE;
    options.attempts = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build().map_err(LookupError::ResolvConf)
}

/// The targets of a domain's SRV records, all addresses of each.
async fn srv(resolver: &TokioResolver, domain: &HostName) -> Result<Vec<SocketAddr>, LookupError> {
    let name = format!("{SERVICE}.{}.", domain.without_dot());
    let answer = resolver
        .srv_lookup(name)
        .await
        .map_err(|error| LookupError::Records(domain.clone(), error))?;
    let mut targets: Vec<(Name, u16)> = Vec::new();
    for record in answer.answers() {
        let RData::SRV(srv) = &record.data else {
            continue;
        };
        let target = (srv.target.clone(), srv.port);
        // A target of `.` says that there is no such service (RFC 2782).
        let is_usable = !srv.target.is_root() && srv.port != 0;
        if is_usable && targets.len() < MOST_TARGETS && !targets.contains(&target) {
            targets.push(target);
        }
    }
    let found: Vec<Vec<SocketAddr>> = stream::iter(targets)
        .map(|target| addresses(resolver, target))
        .buffered(TARGETS_AT_ONCE)
        .collect()
        .await;
    let found = usable(found.into_iter().flatten().collect());
    if found.is_empty() {
        return Err(LookupError::NoTarget(domain.clone()));
    }
    Ok(found)
}

/// All addresses of one target; none if DNS knows none.
async fn addresses(resolver: &TokioResolver, (name, port): (Name, u16)) -> Vec<SocketAddr> {
    let found = resolver.lookup_ip(name).await;
    let ips = found.iter().flat_map(LookupIp::iter);
    ips.take(MOST_ADDRESSES)
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

/// Canonical addresses of one machine each, without repetitions.
fn usable(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut usable: Vec<SocketAddr> = Vec::new();
    for address in found {
        let Ok(peer) = protocol::PeerAddr::new(address) else {
            continue;
        };
        let address = peer.socket_addr();
        if !usable.contains(&address) {
            usable.push(address);
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
        proto::{
            op::{Message, OpCode},
            rr::{Record, RecordType, rdata::SRV},
        },
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A DNS server on loopback, and a resolver that asks it alone.
    async fn dns(records: Vec<Record>) -> TokioResolver {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let mut buffer = [0; 1_500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.expect("a question");
                let question = Message::from_vec(&buffer[..length]).expect("DNS");
                let query = question.queries[0].clone();
                let mut answer = Message::response(question.metadata.id, OpCode::Query);
                let asked = |record: &&Record| {
                    record.name == *query.name() && record.record_type() == query.query_type()
                };
                answer.add_answers(records.iter().filter(asked).cloned());
                answer.add_query(query);
                let bytes = answer.to_vec().expect("DNS");
                socket.send_to(&bytes, from).await.expect("sent");
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        builder.build().expect("a resolver")
    }

    fn srv_record(port: u16, target: &str) -> Record {
        let name = Name::from_ascii("_peerix._tcp.fleet.test.").expect("a name");
        let target = Name::from_ascii(target).expect("a name");
        Record::from_rdata(name, 60, RData::SRV(SRV::new(0, 0, port, target)))
    }

    fn address_record(name: &str, ip: &str) -> Record {
        let rdata = match ip.parse().expect("an address") {
            IpAddr::V4(ip) => RData::A(ip.into()),
            IpAddr::V6(ip) => RData::AAAA(ip.into()),
        };
        assert!(matches!(
            rdata.record_type(),
            RecordType::A | RecordType::AAAA
        ));
        Record::from_rdata(Name::from_ascii(name).expect("a name"), 60, rdata)
    }

    #[tokio::test]
    async fn srv_records_become_all_addresses_of_their_targets() {
        let resolver = dns(vec![
            srv_record(12_304, "a.fleet.test."),
            srv_record(1, "b.fleet.test."),
            srv_record(1, "B.fleet.test."),
            srv_record(12_304, "gone.fleet.test."),
            srv_record(0, "a.fleet.test."),
            srv_record(5, "."),
            address_record("a.fleet.test.", "10.9.0.1"),
            address_record("a.fleet.test.", "fd00::1"),
            address_record("b.fleet.test.", "10.9.0.2"),
            address_record("b.fleet.test.", "224.0.0.1"),
        ])
        .await;
        let domain: HostName = "fleet.test".parse().expect("a name");
        let mut found = srv(&resolver, &domain).await.expect("addresses");
        found.sort();
        let expected = ["10.9.0.1:12304", "10.9.0.2:1", "[fd00::1]:12304"];
        let expected = expected.map(|text| text.parse().expect("an address"));
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn a_domain_without_peers_is_an_error_that_says_so() {
        let domain: HostName = "fleet.test".parse().expect("a name");
        let none = srv(&dns(Vec::new()).await, &domain).await;
        assert!(matches!(none, Err(LookupError::Records(..))), "{none:?}");
        let dangling = dns(vec![srv_record(12_304, "gone.fleet.test.")]).await;
        let dangling = srv(&dangling, &domain).await;
        assert!(
            matches!(dangling, Err(LookupError::NoTarget(_))),
            "{dangling:?}"
        );
    }

    #[tokio::test]
    async fn a_host_name_is_what_the_system_says() {
        let wanted = Wanted::Host {
            name: PeerName::Host("localhost".parse().expect("a name")),
            port: 7,
        };
        let found = Lookups::new().look_up(&wanted).await.expect("addresses");
        assert!(
            found.contains(&SocketAddr::from((Ipv4Addr::LOCALHOST, 7))),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn the_name_of_an_interface_is_its_index() {
        let look_up = |interface: &str| {
            let text = format!("fe80::1%{interface}");
            let name = PeerName::Zoned(text.parse().expect("an address"));
            let wanted = Wanted::Host { name, port: 7 };
            async move { Lookups::new().look_up(&wanted).await }
        };
        let index = std::fs::read_to_string("/sys/class/net/lo/ifindex").expect("an index");
        let expected = format!("[fe80::1%{}]:7", index.trim());
        let found = look_up("lo").await.expect("an address");
        assert_eq!(found, [expected.parse().expect("an address")]);
        let none = look_up("peerix-absent").await;
        assert!(matches!(none, Err(LookupError::NoInterface(_))), "{none:?}");
    }

    #[tokio::test]
    async fn lookups_that_hang_do_not_take_all_threads() {
        let lookups = Lookups::new();
        let all = Arc::clone(&lookups.hanging);
        let _hanging = all
            .acquire_many_owned(u32::try_from(MOST_HANGING).expect("few"))
            .await;
        tokio::time::pause();
        let wanted = Wanted::Host {
            name: PeerName::Host("localhost".parse().expect("a name")),
            port: 7,
        };
        let busy = lookups.look_up(&wanted).await;
        assert!(matches!(busy, Err(LookupError::Busy)), "{busy:?}");
    }
}
