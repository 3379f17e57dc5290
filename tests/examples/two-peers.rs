//! Two daemons on loopback, each with a small store: one pulls a path from the other, as Nix would.
//! No root, no Nix, nothing installed, no packet leaves the machine.
//!
//! `cargo run --release --example two-peers`

#[expect(dead_code, reason = "made for the tests, which use all of it")]
#[path = "../support/item.rs"]
mod item;
#[expect(dead_code, reason = "made for the tests, which use all of it")]
#[path = "../support/store.rs"]
mod store;

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use peerix::{
    daemon::{self, Control, DaemonError, Launch, Options, Setup},
    format::{NarHash, Narinfo, StoreDir},
    system::{notify::Notifier, sockets::Sockets},
};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use item::{Item, Tree};
use store::Store;

/// Content of the one large file.
const LARGE_BYTES: usize = 64 << 20;

/// Nobody's path, for a miss.
const NOBODY_HAS: &str = "00000000000000000000000000000000";

/// It takes a second or two; whatever takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    match demonstrate(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("two-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs both daemons, pulls, and says to `out` what happened.
pub(crate) fn demonstrate(out: &mut impl Write) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
    runtime.block_on(async {
        let done = tokio::time::timeout(PATIENCE, pull(out)).await;
        done.with_context(|| format!("not done after {PATIENCE:?}"))?
    })
}

async fn pull(out: &mut impl Write) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let (holding, asking) = (sockets([127, 0, 0, 1])?, sockets([127, 0, 0, 2])?);
    let (holder_at, asker_at) = (address(&holding)?, address(&asking)?);

    // A key made for this run: the holder has a path that it signed, the asker trusts it.
    let seed = Sha256::digest(format!("{:?} {holder_at}", std::time::SystemTime::now()));
    let key = item::key("two-peers-1", seed[0]);
    let path = demo_path().sign(&key);
    let holder = machine(&directory.path().join("holder"), holder_at, asker_at)?;
    holder.store.add(&path);
    let asker = machine(&directory.path().join("asker"), asker_at, holder_at)?;
    let trusted = format!("trusted-public-keys = {}\n", key.public_key());
    for machine in [&holder, &asker] {
        fs::write(machine.nix_conf(), &trusted).context("cannot write nix.conf")?;
    }
    let holder = holder.start(holding)?;
    let asker = asker.start(asking)?;
    writeln!(
        out,
        "holder  http://{holder_at}  has 1 path of {}, signed by {}",
        size(path.nar.len()),
        key.name()
    )?;
    writeln!(
        out,
        "asker   http://{asker_at}  has nothing, and trusts that key"
    )?;

    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .context("cannot make an HTTP client")?;
    let gateway = format!("http://{asker_at}");
    let began = Instant::now();
    let answer = http
        .get(format!("{gateway}/{}.narinfo", path.hash()))
        .send()
        .await
        .context("the asker does not answer")?;
    ensure!(
        answer.status() == 200,
        "the asker found nothing: {} for the narinfo",
        answer.status()
    );
    let narinfo = answer.bytes().await.context("the narinfo broke off")?;
    let narinfo =
        Narinfo::parse(&StoreDir::default(), &narinfo).context("the narinfo is malformed")?;
    ensure!(
        narinfo.info == path.info,
        "the narinfo is not what the holder's store says"
    );
    writeln!(
        out,
        "narinfo {}.narinfo  200 in {}, signature verified",
        path.hash(),
        ms(began.elapsed())
    )?;

    let began = Instant::now();
    let answer = http
        .get(format!("{gateway}/{}", narinfo.url.as_str()))
        .send()
        .await
        .context("no NAR")?;
    ensure!(answer.status() == 200, "no NAR: {}", answer.status());
    let from = answer
        .headers()
        .get("x-peerix-peer")
        .and_then(|peer| peer.to_str().ok())
        .unwrap_or("nobody")
        .to_owned();
    let (nar_hash, bytes) = hash(answer).await?;
    let took = began.elapsed();
    ensure!(
        nar_hash == path.info.nar_hash,
        "the NAR has the wrong hash: {nar_hash} instead of {}",
        path.info.nar_hash
    );
    ensure!(
        from == holder_at.to_string(),
        "the NAR came from {from} instead of {holder_at}"
    );
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    writeln!(
        out,
        "NAR     {} from {from} in {}, sha256 verified: {rate:.0} MB/s",
        size(bytes),
        ms(took)
    )?;

    // The first may still wait for sleeping neighbours; it is paid once for all lookups together.
    let mut began = Instant::now();
    for _ in 0..2 {
        began = Instant::now();
        let miss = format!("{gateway}/{NOBODY_HAS}.narinfo");
        let answer = http.get(miss).send().await.context("no answer")?;
        let status = answer.status();
        ensure!(status == 404, "{status} for a path that nobody has");
    }
    writeln!(
        out,
        "miss    404 in {}: the holder said no",
        ms(began.elapsed())
    )?;

    drop(http);
    holder.end().await.context("the holder failed")?;
    asker.end().await.context("the asker failed")?;
    writeln!(out, "both daemons stopped")?;
    Ok(())
}

/// One large file, and 200 small ones.
fn demo_path() -> Item {
    let small: Vec<(&'static str, Tree)> = (0..200)
        .map(|at| {
            // The tree borrows names for as long as the program runs.
            let name: &'static str = Box::leak(format!("{at:03}").into_boxed_str());
            (name, Tree::File(item::noise(100 + at * 37, at as u64)))
        })
        .collect();
    let large = Tree::File(item::noise(LARGE_BYTES, 7));
    let tree = Tree::Directory(vec![("large", large), ("small", Tree::Directory(small))]);
    Item::new("two-peers-demo", tree)
}

/// TCP and UDP on one free port.
fn sockets(ip: [u8; 4]) -> Result<Sockets> {
    let ip = Ipv4Addr::from(ip);
    for _ in 0..16 {
        let tcp = TcpListener::bind((ip, 0)).with_context(|| format!("cannot listen on {ip}"))?;
        let Ok(udp) = UdpSocket::bind(tcp.local_addr()?) else {
            continue;
        };
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        return Ok(Sockets {
            tcp: vec![tcp],
            udp: vec![udp],
            activated: false,
        });
    }
    bail!("no port of {ip} is free for TCP and UDP")
}

fn address(sockets: &Sockets) -> Result<SocketAddr> {
    Ok(sockets.tcp.first().context("no socket")?.local_addr()?)
}

/// A machine that is not running yet.
struct Machine {
    directory: std::path::PathBuf,
    store: Store,
}

/// With an empty store, knowing the other one by address.
fn machine(directory: &Path, at: SocketAddr, other: SocketAddr) -> Result<Machine> {
    fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let machine = Machine {
        directory: directory.to_owned(),
        store: Store::new(directory),
    };
    let settings = format!(
        "port = {}\n[discovery]\nbroadcast = false\npeers = [{:?}]\n[share]\nkeys = [\"two-peers-1\"]\n[store]\nreal-dir = {:?}\ndatabase = {:?}\n\
         [trust]\nnix-conf = {:?}\n",
        at.port(),
        other.to_string(),
        machine.store.files(),
        machine.store.database(),
        machine.nix_conf()
    );
    fs::write(directory.join("peerix.toml"), settings).context("cannot write peerix.toml")?;
    Ok(machine)
}

impl Machine {
    fn nix_conf(&self) -> std::path::PathBuf {
        self.directory.join("nix.conf")
    }

    fn start(&self, sockets: Sockets) -> Result<Running> {
        let options = Options {
            config_file: Some(self.directory.join("peerix.toml")),
            ..Options::default()
        };
        let setup = Setup::read(&options).context("cannot use the settings")?;
        let launch = Launch {
            options,
            setup: Ok(setup),
            sockets,
            notifier: Notifier::default(),
            state_file: None,
            sharing_files: None,
        };
        let stop = CancellationToken::new();
        // Kept by the daemon as long as it may be told to reload: nobody does.
        let (_, reload) = mpsc::channel(1);
        let task = tokio::spawn(daemon::run(
            launch,
            Control {
                stop: stop.clone(),
                reload,
            },
        ));
        Ok(Running { stop, task })
    }
}

/// A daemon at work.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), DaemonError>>,
}

impl Running {
    async fn end(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await.context("it panicked")??)
    }
}

/// The sha256 of a body, and its length.
async fn hash(answer: reqwest::Response) -> Result<(NarHash, usize)> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut body = answer.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.context("the NAR broke off")?;
        hasher.update(&piece);
        bytes += piece.len();
    }
    Ok((NarHash::from_digest(hasher.finalize().into()), bytes))
}

fn size(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
