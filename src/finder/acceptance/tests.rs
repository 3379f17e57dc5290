use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use super::*;
use crate::format::{SecretKey, StorePath, base32, nar::LayoutBuilder, nar::Segment};

/// A key whose seed is one byte repeated.
fn key(name: &str, seed: u8) -> SecretKey {
    let signing = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let text = format!("{name}:{}", BASE64.encode(&signing.to_keypair_bytes()));
    SecretKey::parse(&text).expect("key")
}

fn trust() -> Trust {
    Trust {
        store_dir: StoreDir::default(),
        keys: [key("good-1", 1).public_key()].into_iter().collect(),
        require_sigs: true,
        nar_limit: 1 << 30,
    }
}

fn info(nar: &[u8]) -> PathInfo {
    PathInfo {
        path: StorePath::from_basename("s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12")
            .expect("path"),
        nar_hash: NarHash::from_digest(Sha256::digest(nar).into()),
        nar_size: nar.len() as u64,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        ca: None,
    }
}

fn signed(mut info: PathInfo, key: &SecretKey) -> PathInfo {
    info.signatures = vec![key.sign_info(&StoreDir::default(), &info)];
    info
}

fn narinfo(info: PathInfo) -> Vec<u8> {
    let url = NarUrl::parse("nar/x.nar").expect("url");
    Narinfo {
        info,
        url,
        compression: Compression::None,
        file_size: None,
    }
    .print(&StoreDir::default())
    .into_bytes()
}

/// The NAR of a regular file.
fn file_nar(content: &[u8], executable: bool) -> Vec<u8> {
    let mut builder = LayoutBuilder::new();
    builder
        .file(b"", executable, content.len() as u64)
        .expect("file");
    let layout = builder.finish().expect("layout");
    let mut nar = Vec::new();
    for segment in layout.segments(0..layout.nar_size()) {
        match segment {
            Segment::Framing(bytes) => nar.extend_from_slice(bytes),
            Segment::File { .. } => nar.extend_from_slice(content),
        }
    }
    nar
}

/// The path that Nix gives a flat sha256 file without references.
fn flat_info(content: &[u8]) -> PathInfo {
    let hex = |digest: &[u8]| {
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let inner = Sha256::digest(format!(
        "fixed:out:sha256:{}:",
        hex(&Sha256::digest(content))
    ));
    let outer = Sha256::digest(format!("output:out:sha256:{}:/nix/store:flat", hex(&inner)));
    let mut folded = [0; 20];
    outer
        .iter()
        .enumerate()
        .for_each(|(index, byte)| folded[index % 20] ^= byte);
    let ca = format!("fixed:sha256:{}", base32::encode(&Sha256::digest(content)));
    PathInfo {
        path: StorePath::from_basename(&format!("{}-flat", base32::encode(&folded))).expect("path"),
        ca: Some(ContentAddress::parse(&ca).expect("address")),
        ..info(&file_nar(content, false))
    }
}

fn judge(trust: &Trust, info: PathInfo) -> Result<Offer, Rejection> {
    trust.judge(info.path.hash(), &narinfo(info.clone()))
}

#[test]
fn what_a_trusted_key_signed_is_accepted() {
    let offer = judge(&trust(), signed(info(b"x"), &key("good-1", 1))).expect("accepted");
    assert_eq!(offer.proof, Proof::NarHash);
    assert_eq!(offer.url.as_str(), "nar/x.nar");
}

#[test]
fn what_is_unsigned_or_signed_by_others_is_not() {
    let foreign = signed(info(b"x"), &key("other-1", 2));
    let impostor = signed(info(b"x"), &key("good-1", 2));
    let mut changed = signed(info(b"x"), &key("good-1", 1));
    changed.nar_size += 1;
    for info in [info(b"x"), foreign, impostor, changed] {
        assert_eq!(judge(&trust(), info), Err(Rejection::Unsigned));
    }
}

#[test]
fn another_path_than_the_asked_one_is_refused_however_well_signed() {
    let info = signed(info(b"x"), &key("good-1", 1));
    let asked = StorePathHash::parse(&[b'0'; 32]).expect("hash");
    let found = info.path.hash();
    assert_eq!(
        trust().judge(asked, &narinfo(info)),
        Err(Rejection::OtherPath { found, asked })
    );
}

#[test]
fn without_require_sigs_everything_well_formed_is_accepted() {
    let lenient = Trust {
        require_sigs: false,
        ..trust()
    };
    assert!(judge(&lenient, info(b"x")).is_ok());
    let asked = info(b"x").path.hash();
    assert!(matches!(
        lenient.judge(asked, b"junk"),
        Err(Rejection::Malformed(_))
    ));
}

#[test]
fn compressed_and_oversized_nars_are_refused() {
    let info = signed(info(b"x"), &key("good-1", 1));
    let hash = info.path.hash();
    let text = String::from_utf8(narinfo(info)).expect("text");
    for method in ["xz", "zstd", "bzip2"] {
        let text = text.replace("Compression: none", &format!("Compression: {method}"));
        assert_eq!(
            trust().judge(hash, text.as_bytes()),
            Err(Rejection::Compressed),
            "{method}"
        );
    }
    let narrow = Trust {
        nar_limit: 0,
        ..trust()
    };
    assert_eq!(
        narrow.judge(hash, text.as_bytes()),
        Err(Rejection::TooLarge { size: 1, limit: 0 })
    );
}

#[test]
fn an_unsigned_flat_file_is_accepted_for_its_content_alone() {
    let content = b"some source";
    let offer = judge(&trust(), flat_info(content)).expect("accepted");
    let nar = file_nar(content, false);
    assert!(
        offer
            .proof
            .holds(&offer.info.nar_hash, &offer.info.nar_hash, Some(&nar))
    );

    // A liar can give any NAR hash; the content is bound to the path.
    let lie = file_nar(b"another one", false);
    let lie_hash = NarHash::from_digest(Sha256::digest(&lie).into());
    assert!(!offer.proof.holds(&lie_hash, &lie_hash, Some(&lie)));
    let executable = file_nar(content, true);
    let executable_hash = NarHash::from_digest(Sha256::digest(&executable).into());
    assert!(
        !offer
            .proof
            .holds(&executable_hash, &executable_hash, Some(&executable))
    );
    assert!(
        !offer
            .proof
            .holds(&offer.info.nar_hash, &offer.info.nar_hash, None)
    );
}

#[test]
fn a_content_address_that_does_not_lead_to_the_path_is_refused() {
    let mut other = flat_info(b"some source");
    other.path = StorePath::from_basename(&format!("{}-flap", other.path.hash())).expect("path");
    assert_eq!(judge(&trust(), other), Err(Rejection::WrongContentAddress));
    let mut recursive = info(b"x");
    recursive.ca =
        ContentAddress::parse(&format!("fixed:r:sha256:{}", base32::encode(&[7; 32]))).ok();
    assert_eq!(
        judge(&trust(), recursive),
        Err(Rejection::WrongContentAddress)
    );
}

#[test]
fn a_signature_does_not_make_up_for_a_content_address_that_is_not_the_paths() {
    let trusted = key("good-1", 1);
    let honest = signed(flat_info(b"hello"), &trusted);
    let ca = honest.ca.clone();
    assert!(judge(&trust(), honest).is_ok());
    let mut lie = signed(info(b"nar"), &trusted);
    lie.ca = ca;
    assert_eq!(judge(&trust(), lie), Err(Rejection::WrongContentAddress));
}

#[test]
fn an_address_that_cannot_be_checked_is_refused() {
    let mut large = flat_info(b"some source");
    large.nar_size = FLAT_LIMIT_BYTES + 1;
    let mut weak = info(b"x");
    weak.ca = ContentAddress::parse(&format!("fixed:r:sha1:{}", base32::encode(&[7; 20]))).ok();
    assert!(weak.ca.is_some());
    for info in [large, weak] {
        assert_eq!(
            judge(&trust(), info),
            Err(Rejection::UncheckableContentAddress)
        );
    }
}

#[test]
fn only_the_nar_of_one_plain_file_has_a_flat_content() {
    for length in 0..40 {
        let content = vec![7; length];
        let nar = file_nar(&content, false);
        assert_eq!(flat_file(&nar), Some(content.as_slice()));
        for end in 0..nar.len() {
            assert_eq!(
                flat_file(&nar[..end]),
                None,
                "cut at {end} of {}",
                nar.len()
            );
        }
        let mut longer = nar.clone();
        longer.push(0);
        assert_eq!(flat_file(&longer), None);
    }
    let mut padded = file_nar(b"abc", false);
    let padding = padded.len() - 17;
    padded[padding] = 1;
    assert_eq!(flat_file(&padded), None);
}
