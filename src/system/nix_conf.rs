//! Reading nix.conf with the files it includes, and noticing when one of them changed. What a
//! line means and which keys are trusted is [`crate::format::nix_conf`]'s.
//!
//! Like Nix: an include is relative to the file that names it, and settings count in the order
//! in which they are met. Unlike Nix, an include that cannot be read is passed over, also
//! without the `!`: on many machines it holds access tokens that only root may read.
//! `NIX_CONF_DIR` and `NIX_USER_CONF_FILES` are the business of a person's shell, not of this daemon.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{ReadError, regular_file};
use crate::format::nix_conf::{Directive, NixConfError, NixTrust, parse, parse_switch};

const MAX_FILE_BYTES: usize = 1 << 20;

/// Nix knows no bound and recurses until its stack ends; nobody nests deeper than two.
const MAX_DEPTH: usize = 10;

/// Files that include each other several times, without a cycle, can be read this often in all.
const MAX_FILES: usize = 256;

/// Why nix.conf cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NixConfReadError {
    /// The main file is there and cannot be read.
    #[error("no trust settings")]
    Read(#[source] ReadError),
    /// A file of it is not well-formed.
    #[error("cannot use {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: NixConfError,
    },
}

/// The trust settings, and the files they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixConf {
    /// What they say.
    pub trust: NixTrust,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// Reads nix.conf at `path`. Without one, Nix's defaults hold.
pub fn read(path: &Path) -> Result<NixConf, NixConfReadError> {
    let mut trust = NixTrust::default();
    let files = visit(path, |line, name, value| trust.apply(line, name, value))?;
    Ok(NixConf { trust, files })
}

/// Whether Nix uses write-ahead logs (`use-sqlite-wal`); without them it also locks its
/// databases in another way. What else is wrong in the settings does not matter here.
pub fn uses_sqlite_wal(path: &Path) -> Result<bool, NixConfReadError> {
    let mut is_used = true;
    visit(path, |_, name, value| {
        if name == "use-sqlite-wal" {
            is_used = parse_switch(value).unwrap_or(is_used);
        }
        Ok(())
    })?;
    Ok(is_used)
}

/// Gives every setting to `setting`: its line, name and value. Returns the files.
fn visit(
    path: &Path,
    setting: impl FnMut(usize, &str, &str) -> Result<(), NixConfError>,
) -> Result<Vec<(PathBuf, Option<Stamp>)>, NixConfReadError> {
    let mut reader = Reader {
        files: Vec::new(),
        including: Vec::new(),
        setting,
    };
    match reader.add(path) {
        Err(NixConfReadError::Read(error)) if error.is_absent() => {}
        other => other?,
    }
    Ok(reader.files)
}

impl NixConf {
    /// Whether a file came, went or was replaced, written or given other rights since it was read.
    pub fn changed(&self) -> bool {
        self.files
            .iter()
            .any(|(path, stamp)| Stamp::of(path) != *stamp)
    }

    /// The files that were read or looked for, in that order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| &**path)
    }
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: FileId,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type FileId = (u64, u64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().as_ref().map(Self::from)
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

struct Reader<F> {
    files: Vec<(PathBuf, Option<Stamp>)>,
    /// The files that are being read, outermost first.
    including: Vec<FileId>,
    setting: F,
}

impl<F: FnMut(usize, &str, &str) -> Result<(), NixConfError>> Reader<F> {
    fn add(&mut self, path: &Path) -> Result<(), NixConfReadError> {
        let read = regular_file::read(path, MAX_FILE_BYTES);
        let stamp = read.as_ref().map_or_else(
            |_| Stamp::of(path),
            |(_, metadata)| Some(Stamp::from(metadata)),
        );
        self.files.push((path.into(), stamp));
        let (bytes, metadata) = read.map_err(NixConfReadError::Read)?;

        self.including.push(Stamp::from(&metadata).file);
        // A comment may be in any encoding; a name or key that is not ASCII fails by itself.
        let applied = self.apply(path, &String::from_utf8_lossy(&bytes));
        self.including.pop();
        applied
    }

    fn apply(&mut self, path: &Path, text: &str) -> Result<(), NixConfReadError> {
        let parse_error = |source| NixConfReadError::Parse {
            path: path.into(),
            source,
        };
        for directive in parse(text).map_err(parse_error)? {
            match directive {
                Directive::Setting { line, name, value } => {
                    (self.setting)(line, name, value).map_err(parse_error)?;
                }
                Directive::Include { file, .. } => self.include(path, file)?,
            }
        }
        Ok(())
    }

    fn include(&mut self, including: &Path, file: &str) -> Result<(), NixConfReadError> {
        let path = including.parent().unwrap_or(Path::new("/")).join(file);
        let is_open = Stamp::of(&path).is_some_and(|stamp| self.including.contains(&stamp.file));
        if is_open || self.including.len() >= MAX_DEPTH || self.files.len() >= MAX_FILES {
            log::debug!(
                "{} is not included again in {}",
                path.display(),
                including.display()
            );
            return Ok(());
        }
        match self.add(&path) {
            Err(NixConfReadError::Read(error)) => {
                log::debug!(
                    "{} leaves out an include: {}",
                    including.display(),
                    super::journal::chain(&error)
                );
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const KEY: &str = "6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    struct Conf(tempfile::TempDir);

    impl Conf {
        fn new(files: &[(&str, &str)]) -> Self {
            let conf = Self(tempfile::tempdir().unwrap());
            for (name, text) in files {
                conf.write(name, text);
            }
            conf
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.replace("KEY", KEY)).unwrap();
        }

        fn read(&self) -> NixConf {
            read(&self.path("nix.conf")).unwrap()
        }

        fn keys(&self) -> Vec<String> {
            self.read()
                .trust
                .public_keys
                .iter()
                .map(|key| key.name().to_owned())
                .collect()
        }
    }

    #[test]
    fn nothing_there_is_what_nix_assumes() {
        let conf = Conf::new(&[]);
        let read = conf.read();
        assert_eq!(read.trust, NixTrust::default());
        assert!(!read.changed());
        conf.write("nix.conf", "require-sigs = false");
        assert!(read.changed());
        assert!(!conf.read().trust.require_sigs);
    }

    #[test]
    fn the_way_of_locking_is_read_past_what_is_wrong_elsewhere() {
        let uses_wal = |text: &str| {
            let conf = Conf::new(&[("nix.conf", text), ("more.conf", "use-sqlite-wal = no\n")]);
            uses_sqlite_wal(&conf.path("nix.conf")).ok()
        };
        for (text, expected) in [
            ("", Some(true)),
            ("use-sqlite-wal = true", Some(true)),
            ("use-sqlite-wal = false", Some(false)),
            ("use-sqlite-wal = 0\nuse-sqlite-wal = perhaps", Some(false)),
            (
                "trusted-public-keys = nonsense\ninclude more.conf",
                Some(false),
            ),
            ("include more.conf\nuse-sqlite-wal = yes", Some(true)),
            ("use-sqlite-wal=false", None),
        ] {
            assert_eq!(uses_wal(text), expected, "{text}");
        }
        let conf = Conf::new(&[]);
        assert_eq!(uses_sqlite_wal(&conf.path("nix.conf")).ok(), Some(true));
    }

    #[test]
    fn includes_are_relative_to_their_file_and_count_in_order() {
        let conf = Conf::new(&[
            (
                "nix.conf",
                "trusted-public-keys = a:KEY\ninclude d/one.conf\nextra-trusted-public-keys = d:KEY\n",
            ),
            (
                "d/one.conf",
                "extra-trusted-public-keys = b:KEY\n!include two.conf\n",
            ),
            (
                "d/two.conf",
                "extra-trusted-public-keys = c:KEY\nrequire-sigs = false\n",
            ),
            ("two.conf", "trusted-public-keys = wrong:KEY\n"),
        ]);
        assert_eq!(conf.keys(), ["a", "b", "c", "d"]);
        assert!(!conf.read().trust.require_sigs);
        assert_eq!(conf.read().files().count(), 3);
    }

    #[test]
    fn what_cannot_be_included_is_passed_over_and_watched() {
        let conf = Conf::new(&[
            (
                "nix.conf",
                "include gone.conf\n!include gone.conf\ninclude dir\ntrusted-public-keys = a:KEY\n",
            ),
            ("dir/file", ""),
        ]);
        let before = conf.read();
        assert_eq!(conf.keys(), ["a"]);
        assert!(!before.changed());
        conf.write("gone.conf", "trusted-public-keys = b:KEY\n");
        assert!(before.changed());
    }

    #[test]
    fn cycles_end() {
        let conf = Conf::new(&[
            (
                "nix.conf",
                "include nix.conf\ninclude other.conf\nextra-trusted-public-keys = a:KEY\n",
            ),
            (
                "other.conf",
                "include link.conf\nextra-trusted-public-keys = b:KEY\n",
            ),
        ]);
        symlink(conf.path("nix.conf"), conf.path("link.conf")).unwrap();
        let names = conf.keys();
        assert_eq!(names[names.len() - 2..], ["b", "a"]);
        assert_eq!(conf.read().files().count(), 2);
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let conf = Conf::new(&[]);
        conf.write("nix.conf", "include 1.conf\ninclude 1.conf\n");
        for depth in 1..40 {
            let next = depth + 1;
            conf.write(
                &format!("{depth}.conf"),
                &format!("include {next}.conf\ninclude {next}.conf\n"),
            );
        }
        assert_eq!(conf.read().files().count(), MAX_FILES);
        conf.write("nix.conf", "include 1.conf\n");
        for depth in 1..40 {
            conf.write(
                &format!("{depth}.conf"),
                &format!("include {}.conf\n", depth + 1),
            );
        }
        assert_eq!(conf.read().files().count(), MAX_DEPTH);
    }

    #[test]
    fn every_kind_of_change_shows() {
        let conf = Conf::new(&[
            ("nix.conf", "include part.conf\n"),
            ("part.conf", "require-sigs = true\n"),
        ]);
        let changes: [fn(&Path); 4] = [
            |part| fs::write(part, "require-sigs = false\n").unwrap(),
            |part| fs::set_permissions(part, fs::Permissions::from_mode(0o600)).unwrap(),
            |part| fs::rename(part, part.with_extension("old")).unwrap(),
            |part| symlink(part.with_extension("old"), part).unwrap(),
        ];
        for change in changes {
            let before = conf.read();
            change(&conf.path("part.conf"));
            assert!(before.changed());
        }
    }

    #[test]
    fn the_main_file_must_be_usable_if_it_is_there() {
        let conf = Conf::new(&[("nix.conf/file", "")]);
        assert!(matches!(
            read(&conf.path("nix.conf")),
            Err(NixConfReadError::Read(ReadError::NotRegular { .. }))
        ));
        let conf = Conf::new(&[
            ("nix.conf", "include part.conf\n"),
            ("part.conf", "require-sigs = perhaps\n"),
        ]);
        let Err(NixConfReadError::Parse { path, .. }) = read(&conf.path("nix.conf")) else {
            panic!("not refused")
        };
        assert_eq!(path, conf.path("part.conf"));
        conf.write("nix.conf", &"#".repeat(MAX_FILE_BYTES + 1));
        assert!(matches!(
            read(&conf.path("nix.conf")),
            Err(NixConfReadError::Read(ReadError::TooLarge { .. }))
        ));
    }
}
