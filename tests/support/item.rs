//! A store path that a test made: its tree, its NAR, and the facts about it.

use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt, path::Path};

use data_encoding::{BASE64, HEXLOWER};
use peerix::format::{
    ContentAddress, NarHash, Narinfo, PathInfo, PublicKey, SecretKey, StoreDir, StorePath, base32,
    nar::{LayoutBuilder, Segment},
    narinfo::{Compression, NarUrl},
};
use sha2::{Digest, Sha256};

/// The tree of a path.
#[derive(Clone)]
pub(crate) enum Tree {
    File(Vec<u8>),
    Program(Vec<u8>),
    Link(&'static str),
    /// Entries sorted by name.
    Directory(Vec<(&'static str, Tree)>),
}

impl Tree {
    /// A directory with a program, a link to it, and a file of `size` bytes.
    pub(crate) fn small(size: usize, seed: u64) -> Self {
        let program = format!("#!/bin/sh\necho {seed}\n").into_bytes();
        Self::Directory(vec![
            (
                "bin",
                Self::Directory(vec![
                    ("run", Self::Program(program)),
                    ("start", Self::Link("run")),
                ]),
            ),
            ("data", Self::File(noise(size, seed))),
            ("empty", Self::File(Vec::new())),
        ])
    }

    /// Its NAR.
    pub(crate) fn nar(&self) -> Vec<u8> {
        let mut builder = LayoutBuilder::new();
        let mut contents = HashMap::new();
        self.describe(b"", &mut builder, &mut contents);
        let layout = builder.finish().expect("a layout");
        let mut nar = Vec::new();
        for segment in layout.segments(0..layout.nar_size()) {
            match segment {
                Segment::Framing(bytes) => nar.extend_from_slice(bytes),
                Segment::File { file, .. } => nar.extend_from_slice(contents[&file]),
            }
        }
        nar
    }

    fn describe<'a>(
        &'a self,
        name: &[u8],
        builder: &mut LayoutBuilder,
        contents: &mut HashMap<peerix::format::nar::FileId, &'a [u8]>,
    ) {
        match self {
            Self::File(bytes) | Self::Program(bytes) => {
                let executable = matches!(self, Self::Program(_));
                let id = builder.file(name, executable, bytes.len() as u64);
                contents.insert(id.expect("file"), bytes);
            }
            Self::Link(target) => builder.symlink(name, target.as_bytes()).expect("link"),
            Self::Directory(entries) => {
                builder.enter_directory(name).expect("directory");
                for (name, tree) in entries {
                    tree.describe(name.as_bytes(), builder, contents);
                }
                builder.leave_directory().expect("end of directory");
            }
        }
    }

    /// Writes it to `path`, readable by everybody as a store is.
    pub(crate) fn write(&self, path: &Path) {
        let mode = |mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        match self {
            Self::File(bytes) => {
                fs::write(path, bytes).expect("file");
                mode(0o444);
            }
            Self::Program(bytes) => {
                fs::write(path, bytes).expect("program");
                mode(0o555);
            }
            Self::Link(target) => std::os::unix::fs::symlink(target, path).expect("link"),
            Self::Directory(entries) => {
                fs::create_dir(path).expect("directory");
                for (name, tree) in entries {
                    tree.write(&path.join(name));
                }
                mode(0o755);
            }
        }
    }
}

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A path with everything about it.
#[derive(Clone)]
pub(crate) struct Item {
    pub(crate) tree: Tree,
    pub(crate) nar: Vec<u8>,
    pub(crate) info: PathInfo,
    /// Built on the machine that has it.
    pub(crate) ultimate: bool,
}

impl Item {
    /// An unsigned, input-addressed path whose hash nothing else has.
    pub(crate) fn new(name: &str, tree: Tree) -> Self {
        let nar = tree.nar();
        let nar_hash = NarHash::from_digest(Sha256::digest(&nar).into());
        let unique = Sha256::digest([name.as_bytes(), nar_hash.digest()].concat());
        let basename = format!("{}-{name}", base32::encode(&unique[..20]));
        let info = PathInfo {
            path: StorePath::from_basename(&basename).expect("store path"),
            nar_hash,
            nar_size: nar.len() as u64,
            references: Vec::new(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        Self {
            tree,
            nar,
            info,
            ultimate: false,
        }
    }

    /// A path signed by [`trusted_key`], whose NAR has a little more than `size` bytes.
    pub(crate) fn signed(name: &str, size: usize) -> Self {
        let seed = u64::from_le_bytes(
            Sha256::digest(name)[..8]
                .try_into()
                .expect("eight of 32 bytes"),
        );
        Self::new(name, Tree::small(size, seed)).sign(&trusted_key())
    }

    /// The same, unsigned.
    pub(crate) fn unsigned(name: &str, size: usize) -> Self {
        let mut item = Self::signed(name, size);
        item.info.signatures.clear();
        item
    }

    /// As `nix-store --add` makes it: `fixed:r:sha256`, unsigned.
    pub(crate) fn source(name: &str, size: usize) -> Self {
        let mut item = Self::unsigned(name, size);
        let digest = item.info.nar_hash.digest().to_vec();
        let inner = format!(
            "source:sha256:{}:/nix/store:{name}",
            HEXLOWER.encode(&digest)
        );
        item.rename(name, &inner);
        item.info.ca = Some(parse_ca(&format!(
            "fixed:r:sha256:{}",
            base32::encode(&digest)
        )));
        item
    }

    /// As `builtins.toFile` makes it: one file, `text:sha256`, unsigned.
    pub(crate) fn text(name: &str, content: &[u8]) -> Self {
        let mut item = Self::new(name, Tree::File(content.to_vec()));
        let digest = Sha256::digest(content);
        let inner = format!("text:sha256:{}:/nix/store:{name}", HEXLOWER.encode(&digest));
        item.rename(name, &inner);
        item.info.ca = Some(parse_ca(&format!(
            "text:sha256:{}",
            base32::encode(&digest)
        )));
        item
    }

    /// As `nix-prefetch-url` makes it: one file, `fixed:sha256`, unsigned.
    pub(crate) fn flat(name: &str, content: &[u8]) -> Self {
        let mut item = Self::new(name, Tree::File(content.to_vec()));
        let digest = Sha256::digest(content);
        let outer = Sha256::digest(format!("fixed:out:sha256:{}:", HEXLOWER.encode(&digest)));
        let inner = format!(
            "output:out:sha256:{}:/nix/store:{name}",
            HEXLOWER.encode(&outer)
        );
        item.rename(name, &inner);
        item.info.ca = Some(parse_ca(&format!(
            "fixed:sha256:{}",
            base32::encode(&digest)
        )));
        item
    }

    /// Gives it the path that `inner` has by the rules of Nix: sha256, folded to 20 bytes.
    fn rename(&mut self, name: &str, inner: &str) {
        let digest = Sha256::digest(inner);
        let mut folded = [0_u8; 20];
        for (at, byte) in digest.iter().enumerate() {
            folded[at % 20] ^= byte;
        }
        let basename = format!("{}-{name}", base32::encode(&folded));
        self.info.path = StorePath::from_basename(&basename).expect("store path");
    }

    /// With one more signature.
    pub(crate) fn sign(mut self, key: &SecretKey) -> Self {
        let signature = key.sign_info(&StoreDir::default(), &self.info);
        self.info.signatures.push(signature);
        self
    }

    /// Referring to `others`; to be signed afterwards.
    pub(crate) fn refer_to(mut self, others: &[&Self]) -> Self {
        self.info.references = others.iter().map(|it| it.info.path.clone()).collect();
        self.info.references.sort();
        self
    }

    /// Built on the machine that has it.
    pub(crate) fn built(mut self) -> Self {
        self.ultimate = true;
        self
    }

    /// The 32 characters.
    pub(crate) fn hash(&self) -> String {
        self.info.path.hash().to_string()
    }

    /// `/nix/store/HASH-NAME`.
    pub(crate) fn path(&self) -> String {
        format!("/nix/store/{}", self.info.path.basename())
    }

    /// `HASH-NARHASH.nar`.
    pub(crate) fn nar_name(&self) -> String {
        format!("{}-{}.nar", self.info.path.hash(), self.info.nar_hash)
    }

    /// Where old peers have its NAR, below `local/`.
    pub(crate) fn old_nar_url(&self) -> String {
        let name = BASE64.encode(self.path().as_bytes()).replace('/', "_");
        format!("local/nar/{name}.nar")
    }

    /// A narinfo of it that points to `url`.
    pub(crate) fn narinfo(&self, url: &str) -> String {
        let narinfo = Narinfo {
            info: self.info.clone(),
            url: NarUrl::parse(url).expect("URL"),
            compression: Compression::None,
            file_size: None,
        };
        narinfo.print(&StoreDir::default())
    }

    /// As peers serve it.
    pub(crate) fn peer_narinfo(&self) -> String {
        self.narinfo(&format!("nar/{}", self.nar_name()))
    }
}

fn parse_ca(text: &str) -> ContentAddress {
    ContentAddress::parse(text).expect("content address")
}

/// A key that is made of one byte.
pub(crate) fn key(name: &str, seed: u8) -> SecretKey {
    SecretKey::parse(&key_text(name, seed)).expect("key")
}

/// The line of its key file.
pub(crate) fn key_text(name: &str, seed: u8) -> String {
    let pair = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).to_keypair_bytes();
    format!("{name}:{}", BASE64.encode(&pair))
}

/// The key that every test machine's nix.conf names.
pub(crate) fn trusted_key() -> SecretKey {
    key("cache.test-1", 1)
}

/// As nix.conf names it.
pub(crate) fn trusted_public_key() -> PublicKey {
    trusted_key().public_key()
}

/// A key that nobody trusts.
pub(crate) fn foreign_key() -> SecretKey {
    key("cache.foreign-1", 2)
}
