//! The signing keys: a systemd credential, or a file. Their bytes are in no error, log line
//! or argument, and the buffer they were read into is cleared.

use std::{
    env, hint,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str,
};

use super::{ReadError, regular_file};
use crate::format::{SecretKey, signature::KeyError};

/// Name of the credential, as in `ImportCredential=` of the unit.
const CREDENTIAL: &str = "peerix.signing-key";

/// Some hundred keys.
const MAX_BYTES: usize = 16 << 10;

/// Why there are no signing keys although there should be.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error(
        "no signing key; right would be a file of `nix-store --generate-binary-cache-key` that the daemon may read"
    )]
    Read(#[source] ReadError),
    /// A line is not a secret key.
    #[error("{} line {line} is not a secret key; right would be NAME:BASE64 as `nix-store --generate-binary-cache-key` writes it", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// A line is not even text.
    #[error("{} line {line} is not a secret key but binary data", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
    },
    /// No line holds a key. A unit can name an empty credential in the place of a file that is not there.
    #[error(
        "{} holds no key: it is empty, or the file that a unit names for it could not be read; right would be one secret key a line",
        path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The keys of the credential `peerix.signing-key` if systemd passed one, else of `key_file`;
/// `None` if neither is asked for.
pub fn signing_key(key_file: Option<&Path>) -> Result<Option<Vec<SecretKey>>, KeyFileError> {
    let credential = env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| Path::new(&directory).join(CREDENTIAL));
    read_first(credential.as_deref(), key_file)
}

fn read_first(
    credential: Option<&Path>,
    key_file: Option<&Path>,
) -> Result<Option<Vec<SecretKey>>, KeyFileError> {
    match credential.map(read) {
        Some(Err(KeyFileError::Read(error))) if error.is_absent() => {}
        Some(keys) => return keys.map(Some),
        None => {}
    }
    key_file.map(read).transpose()
}

fn read(path: &Path) -> Result<Vec<SecretKey>, KeyFileError> {
    let (mut bytes, metadata) = regular_file::read(path, MAX_BYTES).map_err(KeyFileError::Read)?;
    if metadata.mode() & 0o004 != 0 {
        log::warn!(
            "{} holds a secret key and every user can read it; right would be mode 0400",
            path.display()
        );
    }
    let keys = parse(path, &bytes);
    bytes.fill(0);
    // Without it the compiler may leave out writes to memory that is only freed afterwards.
    hint::black_box(&bytes);
    keys
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<SecretKey>, KeyFileError> {
    let mut keys = Vec::new();
    for (line, text) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let text = str::from_utf8(text).map_err(|_| KeyFileError::Binary {
            path: path.into(),
            line,
        })?;
        if !text.trim().is_empty() {
            let key = SecretKey::parse(text).map_err(|source| KeyFileError::Key {
                path: path.into(),
                line,
                source,
            })?;
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err(KeyFileError::Empty { path: path.into() });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fs};

    use super::*;

    /// Made by `nix-store --generate-binary-cache-key` for tests; nobody trusts it.
    const KEY: &str = "k-1:JFelskMFEwNQrv2IR20iooQnjDTZO072UOeT1pbo6wnYQYMI8SbXnNGdclh67ejnPwRZlaRNBPKRuQixonF06w==";

    fn file(text: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    fn names(keys: Result<Option<Vec<SecretKey>>, KeyFileError>) -> Vec<String> {
        keys.unwrap()
            .unwrap()
            .iter()
            .map(|key| key.name().to_owned())
            .collect()
    }

    #[test]
    fn the_credential_comes_first_and_need_not_be_there() {
        let (one, two) = (
            file(KEY),
            file(format!("\n{KEY}\r\n\n  {}\n", KEY.replace("k-1", "k-2"))),
        );
        let absent = Path::new("/nonexistent/credential");
        assert_eq!(
            names(read_first(Some(one.path()), Some(two.path()))),
            ["k-1"]
        );
        assert_eq!(
            names(read_first(Some(absent), Some(two.path()))),
            ["k-1", "k-2"]
        );
        assert_eq!(names(read_first(None, Some(one.path()))), ["k-1"]);
        assert!(read_first(Some(absent), None).unwrap().is_none());
        assert!(read_first(None, None).unwrap().is_none());
    }

    #[test]
    fn a_bad_credential_is_not_passed_over() {
        let (bad, good) = (file("no key"), file(KEY));
        assert!(matches!(
            read_first(Some(bad.path()), Some(good.path())),
            Err(KeyFileError::Key { line: 1, .. })
        ));
    }

    #[test]
    fn what_is_asked_for_must_be_there() {
        let error = read_first(None, Some(Path::new("/nonexistent/key"))).unwrap_err();
        let text = super::super::journal::chain(&error).to_string();
        assert!(
            text.contains("right would be") && text.contains("/nonexistent/key: No such file"),
            "{text}"
        );
        let empty = file("\n \n");
        assert!(matches!(
            read_first(None, Some(empty.path())),
            Err(KeyFileError::Empty { .. })
        ));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_first(None, Some(dir.path())),
            Err(KeyFileError::Read(ReadError::NotRegular { .. }))
        ));
    }

    #[test]
    fn no_error_shows_what_is_in_the_file() {
        let secret = KEY.split_once(':').unwrap().1;
        for text in [
            KEY[..KEY.len() - 6].to_owned(),
            KEY.replace("k-1:", ""),
            format!("{KEY}\n{}", KEY.replace("JFel", "JFem")),
            format!("{KEY}{KEY}"),
            format!("{KEY}\n{secret}\n"),
        ] {
            let mut error: Option<&dyn Error> =
                Some(&read_first(None, Some(file(&text).path())).unwrap_err());
            while let Some(cause) = error {
                for shown in [cause.to_string(), format!("{cause:?}")] {
                    let leaks = |part: &&[u8]| shown.contains(str::from_utf8(part).unwrap());
                    assert!(
                        !secret.as_bytes().windows(8).any(|part| leaks(&part)),
                        "{shown}"
                    );
                }
                error = cause.source();
            }
        }
        let binary = file(b"k-1:abc\n\xff\xfe");
        assert!(matches!(
            read_first(None, Some(binary.path())),
            Err(KeyFileError::Key { line: 1, .. })
        ));
        let binary = file([KEY.as_bytes(), b"\n\xff\xfe"].concat());
        assert!(matches!(
            read_first(None, Some(binary.path())),
            Err(KeyFileError::Binary { line: 2, .. })
        ));
    }
}
