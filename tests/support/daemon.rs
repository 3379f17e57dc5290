//! The daemon as a process: started by hand, or with sockets as systemd starts it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{eventually, http::Answer};

const BINARY: &str = env!("CARGO_BIN_EXE_peerix");

/// Moves stdin and stdout to descriptors 3 and 4 and becomes the daemon: what systemd does, and
/// the only way to a descriptor of a chosen number without unsafe code.
const AS_SYSTEMD: &str =
    "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";

/// The sockets that systemd would hold: one number, TCP and UDP, on 127.0.0.1.
pub(crate) struct Sockets {
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
}

impl Sockets {
    pub(crate) fn open() -> Self {
        Self::open_at(Ipv4Addr::LOCALHOST)
    }

    pub(crate) fn open_at(ip: Ipv4Addr) -> Self {
        eventually("a port that is free for TCP and UDP", || {
            let tcp = TcpListener::bind((ip, 0)).ok()?;
            let udp = UdpSocket::bind(tcp.local_addr().ok()?).ok()?;
            Some(Self { tcp, udp })
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.tcp.local_addr().expect("address")
    }
}

/// A daemon to be started, with nothing of our own environment.
pub(crate) struct Launch {
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
}

impl Launch {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            args: Vec::new(),
            environment: Vec::new(),
            directory: directory.to_owned(),
        }
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    fn environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory);
    }

    /// Starts it and waits until it listens on a port of its own.
    pub(crate) fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        let port = eventually("listening", || {
            if let Some(status) = daemon.child.try_wait().expect("wait") {
                panic!("the daemon ended with {status}:\n{}", daemon.log.text());
            }
            let text = daemon.log.text();
            let (_, rest) = text
                .split_once(" listens on [::]:")
                .or(text.split_once(" listens on 0.0.0.0:"))?;
            rest.split_once(|c: char| !c.is_ascii_digit())?
                .0
                .parse()
                .ok()
        });
        daemon.address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        daemon
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(self) -> Daemon {
        let mut command = Command::new(BINARY);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.environment(&mut command);
        Daemon::of(command)
    }

    /// Starts it with the sockets of `systemd`.
    pub(crate) fn activate(self, sockets: &Sockets) -> Daemon {
        let tcp = sockets.tcp.try_clone().expect("duplicate");
        let udp = sockets.udp.try_clone().expect("duplicate");
        let mut daemon = self
            .env("LISTEN_FDS", "2")
            .activate_with(tcp.into(), udp.into());
        daemon.address = sockets.address();
        daemon
    }

    /// Starts it with any two descriptors as 3 and 4; `LISTEN_FDS` is the caller's.
    pub(crate) fn activate_with(self, third: OwnedFd, fourth: OwnedFd) -> Daemon {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", AS_SYSTEMD, BINARY]).args(&self.args);
        command.stdin(third).stdout(fourth);
        self.environment(&mut command);
        Daemon::of(command)
    }

    /// Runs it to its end: exit code, stdout, stderr.
    pub(crate) fn run(self) -> (Option<i32>, String, String) {
        let mut command = Command::new(BINARY);
        command.args(&self.args).stdin(Stdio::null());
        self.environment(&mut command);
        let output = command.output().expect("the daemon runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }
}

/// What it has written to stderr so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<String>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        self.0.lock().expect("log").clone()
    }

    /// Waits for a line with all of `parts`.
    pub(crate) fn line(&self, parts: &[&str]) -> String {
        eventually(&format!("a line with {parts:?}"), || {
            let text = self.text();
            let line = text
                .lines()
                .find(|line| parts.iter().all(|part| line.contains(part)))?;
            Some(line.to_owned())
        })
    }

    fn follow(&self, stderr: ChildStderr) -> JoinHandle<()> {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while lines
                .read_until(b'\n', &mut line)
                .is_ok_and(|bytes| bytes > 0)
            {
                log.0
                    .lock()
                    .expect("log")
                    .push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        })
    }
}

/// A daemon; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    address: SocketAddr,
    pub(crate) log: Log,
    follower: Option<JoinHandle<()>>,
}

impl Daemon {
    fn of(mut command: Command) -> Self {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon starts");
        let log = Log::default();
        let follower = log.follow(child.stderr.take().expect("piped"));
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            child,
            address: nowhere,
            log,
            follower: Some(follower),
        }
    }

    /// Where it serves HTTP, and its UDP port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        super::http::get(self.address, path)
    }

    /// `/status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.get("/status").body).expect("JSON")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("pid");
        kill(Pid::from_raw(pid), signal).expect("signal");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for its end by itself; all it wrote is in the log then.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = eventually("the end of the daemon", || {
            self.child.try_wait().expect("wait")
        });
        self.finish_log();
        status
    }

    /// SIGTERM, and its exit code.
    pub(crate) fn stop(mut self) -> (Option<i32>, String) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        (status.code(), self.log.text())
    }

    /// Memory in use, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most memory that was ever in use, in KiB.
    pub(crate) fn peak_resident_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, name: &str) -> u64 {
        let status = self.proc("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a line of /proc/PID/status");
        line.trim().trim_end_matches(" kB").parse().expect("number")
    }

    /// A file of /proc/PID.
    pub(crate) fn proc(&self, file: &str) -> String {
        let bytes = fs::read(format!("/proc/{}/{file}", self.pid())).expect("proc");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails if it does not live and answer any more.
    pub(crate) fn assert_well(&mut self) {
        assert!(
            self.is_running(),
            "the daemon has ended:\n{}",
            self.log.text()
        );
        assert_eq!(
            super::http::get_within(self.address, "/healthz", Duration::from_secs(5)).status,
            200
        );
        let log = self.log.text();
        assert!(!log.contains("panicked"), "a task panicked:\n{log}");
    }

    fn finish_log(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.join().expect("log");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().expect("wait");
        self.finish_log();
        if std::thread::panicking() {
            eprintln!("--- stderr of {}:\n{}---", self.address, self.log.text());
        }
    }
}
