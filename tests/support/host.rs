//! A machine: its store, its nix.conf, its peerix.toml, all in one directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    daemon::{Daemon, Launch},
    item::{Item, trusted_public_key},
    store::Store,
};

/// One machine. Its directory is readable by nobody, which is what root's daemon becomes.
pub(crate) struct Host {
    dir: TempDir,
    store: Store,
    settings: String,
}

impl Host {
    /// With an empty store, trusting the tests' key and sharing what it signed, listening on any port, broadcasting nothing.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        open_to_all(dir.path(), 0o755);
        let store = Store::new(dir.path());
        let host = Self {
            dir,
            store,
            settings: String::new(),
        };
        host.write_nix_conf();
        host.write_config();
        host
    }

    /// With more lines in peerix.toml: dotted keys only.
    pub(crate) fn with(mut self, settings: &str) -> Self {
        self.set(settings);
        self
    }

    /// With these paths in the store.
    pub(crate) fn holding(self, items: &[&Item]) -> Self {
        for item in items {
            self.add(item);
        }
        self
    }

    /// The same lines, for a machine that exists.
    pub(crate) fn set(&mut self, settings: &str) {
        self.settings.push_str(settings);
        self.settings.push('\n');
        self.write_config();
    }

    /// Sets a key to a file beside the store.
    pub(crate) fn set_file_setting(&mut self, key: &str, name: &str) {
        let line = format!("{key} = {:?}", self.dir().join(name));
        self.set(&line);
    }

    /// Names the only static peers; other lines stay.
    pub(crate) fn set_peers(&mut self, peers: &[&super::peer::Peer]) {
        let others = self
            .settings
            .lines()
            .filter(|line| !line.starts_with("discovery.peers"));
        self.settings = others.flat_map(|line| [line, "\n"]).collect();
        self.set(&super::peer::Peer::setting(peers));
    }

    /// The files of settings as they were at first.
    pub(crate) fn restore(&mut self) {
        self.settings.clear();
        self.write_config();
        self.write_nix_conf();
    }

    fn write_nix_conf(&self) {
        let trusted = format!("trusted-public-keys = {}\n", trusted_public_key());
        fs::write(self.nix_conf(), trusted).expect("nix.conf");
    }

    /// Puts the database aside.
    pub(crate) fn save_database(&self) {
        fs::copy(self.database(), self.dir().join("saved")).expect("copy");
    }

    /// Puts it back, as a new file.
    pub(crate) fn restore_database(&self) {
        fs::rename(self.dir().join("saved"), self.database()).expect("rename");
    }

    fn write_config(&self) {
        // Peers of the tests share the machine with all the others.
        let patience = if ["discovery.timeout", "wake-timeout"]
            .iter()
            .any(|key| self.settings.contains(key))
        {
            ""
        } else {
            "discovery.timeout = \"200ms\"\n"
        };
        let keys = if self.settings.contains("share.keys") {
            String::new()
        } else {
            format!("share.keys = [\"{}\"]\n", trusted_public_key())
        };
        let text = format!(
            "port = 0\ndiscovery.broadcast = false\n{keys}store.real-dir = {:?}\nstore.database = {:?}\n\
             trust.nix-conf = {:?}\n{patience}{}",
            self.store_dir(),
            self.database(),
            self.nix_conf(),
            self.settings
        );
        fs::write(self.config(), text).expect("peerix.toml");
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.store.files()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.store.database()
    }

    /// Adds a path as Nix does.
    pub(crate) fn add(&self, item: &Item) {
        self.store.add(item);
    }

    /// The row alone.
    pub(crate) fn register(&self, item: &Item) {
        self.store.register(item);
    }

    /// Takes a path away as the garbage collector does.
    pub(crate) fn forget(&self, item: &Item) {
        self.store.forget(item);
    }

    pub(crate) fn nix_conf(&self) -> PathBuf {
        self.dir.path().join("nix.conf")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("peerix.toml")
    }

    /// A file beside the store, of the given rights.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.dir.path().join(name);
        // One that is there may not be written to.
        fs::remove_file(&path).ok();
        fs::write(&path, content).expect("file");
        open_to_all(&path, mode);
        path
    }

    /// A directory beside the store that everybody may write to.
    pub(crate) fn open_directory(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).expect("directory");
        open_to_all(&path, 0o777);
        path
    }

    /// Cuts a file of the store.
    pub(crate) fn truncate(&self, file: &Path, size: u64) {
        open_to_all(file, 0o644);
        let file = fs::OpenOptions::new().write(true).open(file).expect("file");
        file.set_len(size).expect("size");
    }

    /// Starts the daemon as by hand.
    pub(crate) fn start(&self) -> Daemon {
        self.launch().start()
    }

    /// A daemon that is still to be started.
    pub(crate) fn launch(&self) -> Launch {
        Launch::new(self.dir()).args(["--config".as_ref(), self.config().as_os_str()])
    }
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("rights");
}
