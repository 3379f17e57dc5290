//! The formats against the Nix that is installed: keys, signatures, store paths and narinfos go
//! both ways. Says `skipped` where there is no Nix.

#![expect(
    clippy::expect_used,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    ffi::OsStr,
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

use peerix::format::{
    Narinfo, SecretKey, StoreDir, StorePath, TrustedKeys, cache_info,
    narinfo::{Compression, NarUrl},
};

/// A Nix with a store of its own, below a temporary directory.
struct Nix {
    dir: TempDir,
}

impl Nix {
    /// Nothing, and it is said aloud, where there is no Nix.
    fn find() -> Option<Self> {
        let nix = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        match nix.command("nix-store").arg("--version").output() {
            Ok(output) if output.status.success() => Some(nix),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Not `eprintln!`: the test harness would keep that to itself.
                writeln!(std::io::stderr(), "skipped: nix is not installed").expect("stderr");
                None
            }
            other => panic!("nix-store --version: {other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self, name: &str) -> String {
        self.path(name)
            .to_str()
            .expect("a temporary directory with a UTF-8 name")
            .to_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.dir.path())
            .env("NIX_CONF_DIR", self.dir.path())
            .env("NIX_STATE_DIR", self.path("state"))
            .env(
                "NIX_CONFIG",
                "experimental-features = nix-command\nsubstituters =\nbuild-users-group =",
            )
            .env_remove("NIX_REMOTE");
        command
    }

    /// Runs it in the store `store`; what it prints, without the line feed.
    fn run(&self, program: &str, store: &str, arguments: &[impl AsRef<OsStr>]) -> String {
        let output = self.try_run(program, store, arguments);
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .expect("UTF-8")
            .trim_end()
            .to_owned()
    }

    fn try_run(&self, program: &str, store: &str, arguments: &[impl AsRef<OsStr>]) -> Output {
        let mut command = self.command(program);
        command
            .args(arguments)
            .args(["--store", &self.store(store)]);
        command.output().expect("nix runs")
    }

    /// A key pair in two files, as `nix-store` makes it.
    fn generate_key(&self, name: &str) -> SecretKey {
        let (secret, public) = (self.path("secret"), self.path("public"));
        let mut command = self.command("nix-store");
        command
            .args(["--generate-binary-cache-key", name])
            .arg(&secret)
            .arg(&public);
        assert!(command.status().expect("nix-store runs").success());

        let key = SecretKey::parse(&read(&secret)).expect("a key of Nix");
        assert_eq!(key.public_key().to_string(), read(&public).trim());
        key
    }

    /// What Nix says of `path` in a binary cache that it makes.
    fn narinfo(&self, store: &str, path: &str) -> Narinfo {
        let cache = self.path("made-by-nix");
        let to = format!("file://{}?compression=none", cache.display());
        self.run(
            "nix",
            store,
            &["copy", "--no-check-sigs", "--to", &to, path],
        );
        let dir = StoreDir::default();
        let hash = StorePath::parse(&dir, path).expect("a store path").hash();
        let text = fs::read(cache.join(format!("{hash}.narinfo"))).expect("a narinfo of Nix");
        Narinfo::parse(&dir, &text).expect("a narinfo of Nix")
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a text file")
}

/// A small tree, and a text that refers to two others, in the store `a`.
fn fill(nix: &Nix) -> Vec<String> {
    let tree = nix.path("tree");
    fs::create_dir_all(tree.join("empty")).expect("a new directory");
    fs::write(tree.join("file"), "some text\n").expect("a new file");
    let flat = tree.join("file");
    let (tree, flat) = (tree.to_str().expect("UTF-8"), flat.to_str().expect("UTF-8"));

    let mut paths = vec![nix.run("nix-store", "a", &["--add", tree])];
    for algorithm in ["md5", "sha1", "sha256", "sha512"] {
        paths.push(nix.run("nix-store", "a", &["--add-fixed", algorithm, flat]));
        paths.push(nix.run(
            "nix-store",
            "a",
            &["--add-fixed", "--recursive", algorithm, tree],
        ));
    }
    let expression = r#"with builtins; toFile "outer" (toFile "x" "1" + toFile "w" "2")"#;
    let text = nix.run(
        "nix-instantiate",
        "a",
        &["--eval", "--read-write-mode", "--expr", expression],
    );
    paths.push(text.trim_matches('"').to_owned());
    paths
}

#[test]
fn content_addresses_give_the_paths_that_nix_gives() {
    let Some(nix) = Nix::find() else { return };
    let dir = StoreDir::default();
    for path in fill(&nix) {
        let info = nix.narinfo("a", &path).info;
        let ca = info.ca.as_ref().expect("all of them are content-addressed");
        assert!(ca.gives_path_of(&dir, &info), "{path} is not of {ca}");
        assert_eq!(
            info.references.len(),
            if path.ends_with("-outer") { 2 } else { 0 }
        );
    }
}

#[test]
fn nix_signs_as_we_do() {
    let Some(nix) = Nix::find() else { return };
    let dir = StoreDir::default();
    let key = nix.generate_key("test.example-1");
    let trusted: TrustedKeys = [key.public_key()].into_iter().collect();
    let key_file = nix.store("secret");
    for path in fill(&nix) {
        nix.run(
            "nix",
            "a",
            &["store", "sign", "--key-file", &key_file, &path],
        );
        let info = nix.narinfo("a", &path).info;
        assert_eq!(info.signatures, [key.sign_info(&dir, &info)]);
        assert_eq!(trusted.verify(&dir, &info), Some(&info.signatures[0]));
    }
}

#[test]
fn nix_accepts_what_we_print_and_sign() {
    let Some(nix) = Nix::find() else { return };
    let dir = StoreDir::default();
    let key = nix.generate_key("test.example-1");

    // A cache that has nothing of Nix's making but the NARs.
    let cache = nix.path("cache");
    fs::create_dir_all(cache.join("nar")).expect("a new directory");
    fs::write(cache.join("nix-cache-info"), cache_info::print(&dir, 20)).expect("a new file");
    let outer = fill(&nix).pop().expect("the text with references");
    let closure = nix.run("nix-store", "a", &["--query", "--requisites", &outer]);
    for path in closure.lines() {
        let mut info = nix.narinfo("a", path).info;
        // Without it Nix has nothing but the signature to go by.
        info.ca = None;
        info.signatures = vec![key.sign_info(&dir, &info)];
        let nar = cache.join(format!("nar/{}.nar", info.path.hash()));
        let dump = nix
            .command("nix-store")
            .arg("--dump")
            .arg(format!("{}{path}", nix.store("a")))
            .output();
        fs::write(nar, dump.expect("nix-store runs").stdout).expect("a new file");
        let narinfo = Narinfo {
            url: NarUrl::parse(&format!("nar/{}.nar", info.path.hash())).expect("relative"),
            compression: Compression::None,
            file_size: None,
            info,
        };
        let file = cache.join(format!("{}.narinfo", narinfo.info.path.hash()));
        fs::write(file, narinfo.print(&dir)).expect("a new file");
    }

    let from = format!("file://{}", cache.display());
    let copy = |keys: &str| {
        let arguments = [
            "copy",
            "--from",
            &from,
            "--option",
            "trusted-public-keys",
            keys,
            &outer,
        ];
        let mut command = nix.command("nix");
        command
            .args(arguments)
            .args(["--to", &nix.store("b")])
            .output()
            .expect("nix runs")
    };
    let refused = copy("");
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && reason.contains("signature"),
        "{reason}"
    );

    let accepted = copy(&key.public_key().to_string());
    assert!(
        accepted.status.success(),
        "{}",
        String::from_utf8_lossy(&accepted.stderr)
    );
    let copied = nix.run("nix-store", "b", &["--query", "--requisites", &outer]);
    assert_eq!(copied, closure);
    let verified = nix.try_run("nix-store", "b", &["--verify", "--check-contents"]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
}
