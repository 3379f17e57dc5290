use ed25519_dalek::Verifier as _;
use proptest::prelude::*;
use sha2::{Digest as _, Sha512};

use super::*;
use crate::format::{NarHash, Narinfo, StorePath, nix_conf::NixTrust, samples};

fn trusted(keys: &[&str]) -> TrustedKeys {
    keys.iter()
        .map(|key| PublicKey::parse(key).unwrap())
        .collect()
}

fn hello() -> PathInfo {
    Narinfo::parse(&StoreDir::default(), samples::HELLO.as_bytes())
        .unwrap()
        .info
}

#[test]
fn the_fingerprint_is_that_of_nix() {
    let expected = "1;/nix/store/w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10;\
                    sha256:1mi14cqk363wv368ffiiy01knardmnlyphi6h9xv6dkjz44hk30i;205968;\
                    /nix/store/9df65igwjmf2wbw0gbrrgair6piqjgmi-glibc-2.31,\
                    /nix/store/w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.10";
    assert_eq!(fingerprint(&StoreDir::default(), &hello()), expected);
    let alone = PathInfo {
        references: vec![],
        ..hello()
    };
    assert!(fingerprint(&StoreDir::default(), &alone).ends_with(";205968;"));
}

#[test]
fn the_default_key_verifies_what_the_official_cache_signed() {
    let keys: TrustedKeys = NixTrust::default().public_keys.into_iter().collect();
    let info = hello();
    assert_eq!(
        keys.verify(&StoreDir::default(), &info),
        Some(&info.signatures[0])
    );
    assert_eq!(keys.verify(&StoreDir::new("/other").unwrap(), &info), None);
}

#[test]
fn signs_and_verifies_as_nix_does() {
    let secret = samples::secret_key();
    assert_eq!(secret.name(), "k-1");
    assert_eq!(secret.public_key().to_string(), samples::PUBLIC_KEY);

    let keys = trusted(&[samples::PUBLIC_KEY]);
    let mut signed = 0;
    for (dir, narinfo) in samples::narinfos().filter(|(_, it)| !it.info.signatures.is_empty()) {
        let info = narinfo.info;
        assert_eq!(keys.verify(&dir, &info), Some(&info.signatures[0]));
        assert_eq!(
            secret.sign_info(&dir, &info),
            info.signatures[0],
            "ed25519 has one answer"
        );
        signed += 1;
    }
    assert_eq!(signed, 6);
}

#[test]
fn a_change_of_anything_signed_is_noticed() {
    let keys: TrustedKeys = NixTrust::default().public_keys.into_iter().collect();
    let dir = StoreDir::default();
    let verifies = |change: fn(&mut PathInfo)| {
        let mut info = hello();
        change(&mut info);
        keys.verify(&dir, &info).is_some()
    };
    let other = || StorePath::from_basename("w9yy7v61ipb5rx6i35zq1mvc2iqfmps1-hello-2.11").unwrap();

    assert!(
        verifies(|info| info.deriver = Some(info.path.clone())),
        "the deriver is not signed"
    );
    assert!(!verifies(|info| info.nar_size += 1));
    assert!(!verifies(
        |info| info.nar_hash = NarHash::from_digest([7; 32])
    ));
    assert!(!verifies(|info| info.references.truncate(1)));
    assert!(!verifies(|info| info.references.reverse()));
    assert!(!verifies(|info| info.signatures[0].bytes[0] ^= 1));
    assert!(!verifies(
        |info| info.signatures[0].key_name = "cache.nixos.org-2".into()
    ));
    assert!(!verifies(|info| info.signatures.clear()));
    let mut renamed = hello();
    renamed.path = other();
    assert_eq!(keys.verify(&dir, &renamed), None);
}

#[test]
fn finds_the_good_signature_among_bad_ones_and_the_right_key_among_namesakes() {
    let dir = StoreDir::default();
    let mut info = hello();
    let good = info.signatures[0].clone();
    let forged = Signature {
        bytes: [9; 64],
        ..good.clone()
    };
    let stranger = samples::secret_key().sign_info(&dir, &info);
    info.signatures = vec![stranger.clone(), forged, good.clone()];

    let official = NixTrust::default().public_keys[0].to_string();
    let namesake = samples::PUBLIC_KEY.replace("k-1", "cache.nixos.org-1");
    let keys = trusted(&[&namesake, &official, &official]);
    assert_eq!(keys.len(), 2);
    assert_eq!(keys.verify(&dir, &info), Some(&good));
    assert_eq!(
        trusted(&[samples::PUBLIC_KEY]).verify(&dir, &info),
        Some(&stranger)
    );
    assert_eq!(
        trusted(&[&namesake]).verify(&dir, &info),
        None,
        "a name alone is nothing"
    );

    assert!(TrustedKeys::default().is_empty());
    assert_eq!(TrustedKeys::default().verify(&dir, &info), None);
}

#[test]
fn a_good_signature_is_found_among_a_thousand() {
    let dir = StoreDir::default();
    let mut info = hello();
    let good = info.signatures[0].clone();
    let keys = trusted(&[&NixTrust::default().public_keys[0].to_string()]);
    for others in [40_u64, 999] {
        let strangers = (0..others).map(|number| Signature {
            key_name: format!("stranger-{number}").into(),
            bytes: [7; 64],
        });
        info.signatures = strangers.chain([good.clone()]).collect();
        assert_eq!(keys.verify(&dir, &info), Some(&good), "{others}");
        // The same signature again and again is verified once.
        let forged = Signature {
            bytes: [9; 64],
            ..good.clone()
        };
        info.signatures = vec![forged; others as usize];
        info.signatures.push(good.clone());
        assert_eq!(keys.verify(&dir, &info), Some(&good), "{others}");
    }
}

#[test]
fn forged_signatures_of_a_trusted_name_cost_a_bounded_time() {
    let (dir, mut info) = (StoreDir::default(), hello());
    let good = info.signatures[0].clone();
    let keys = trusted(&[&NixTrust::default().public_keys[0].to_string()]);
    let forged = |number: usize| {
        let mut bytes = [9; 64];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Signature {
            bytes,
            ..good.clone()
        }
    };
    info.signatures = (1..MAX_VERIFIED_OF_A_NAME).map(forged).collect();
    info.signatures.push(good.clone());
    assert_eq!(keys.verify(&dir, &info), Some(&good));
    info.signatures.insert(0, forged(0));
    assert_eq!(
        keys.verify(&dir, &info),
        None,
        "the good one is one too many"
    );
}

#[test]
fn refuses_a_scalar_that_is_not_canonical_as_libsodium_does() {
    // S + L passes the equation of RFC 8032 but not its range check.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut info = hello();
    let mut carry = 0;
    for (byte, l) in info.signatures[0].bytes[32..].iter_mut().zip(L) {
        let sum = u16::from(*byte) + u16::from(l) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    let keys: TrustedKeys = NixTrust::default().public_keys.into_iter().collect();
    assert_eq!(keys.verify(&StoreDir::default(), &info), None);
}

#[test]
fn refuses_a_point_of_small_order_as_libsodium_does() {
    // With the neutral element for R the equation S B = R + h A holds for S = h a.
    let (dir, mut info) = (StoreDir::default(), hello());
    let secret = samples::secret_key();
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let hash = Sha512::new()
        .chain_update(&bytes[..32])
        .chain_update(secret.key.verifying_key().as_bytes())
        .chain_update(fingerprint(&dir, &info))
        .finalize();
    let a = secret.key.to_scalar();
    let (mut h, mut shift, mut digit) = (a - a, a, a);
    shift.clone_from(&256u64.into());
    for &byte in hash.iter().rev() {
        digit.clone_from(&byte.into());
        h = h * shift + digit;
    }
    bytes[32..].copy_from_slice((h * a).as_bytes());

    let key = secret.key.verifying_key();
    let lax = ed25519_dalek::Signature::from_bytes(&bytes);
    assert!(
        key.verify(fingerprint(&dir, &info).as_bytes(), &lax)
            .is_ok(),
        "RFC 8032 allows it"
    );
    info.signatures = vec![Signature {
        key_name: "k-1".into(),
        bytes,
    }];
    assert_eq!(trusted(&[samples::PUBLIC_KEY]).verify(&dir, &info), None);
}

#[test]
fn refuses_malformed_keys_and_signatures() {
    let base64 = |bytes: &[u8]| format!("k:{}", BASE64.encode(bytes));
    assert_eq!(PublicKey::parse("k"), Err(KeyError::NoColon));
    let long = format!("{}:", "n".repeat(256));
    for bad in [
        ":AAAA",
        "a b:AAAA",
        "a\n:AAAA",
        "\u{a0}:AAAA",
        "\0:AAAA",
        &long,
    ] {
        assert_eq!(PublicKey::parse(bad), Err(KeyError::Name), "{bad:?}");
        assert_eq!(Signature::parse(bad), Err(KeyError::Name), "{bad:?}");
    }
    assert_eq!(
        PublicKey::parse("k:"),
        Err(KeyError::Length {
            expected: 32,
            found: 0
        })
    );
    assert_eq!(
        PublicKey::parse(&base64(&[1; 31])),
        Err(KeyError::Length {
            expected: 32,
            found: 31
        })
    );
    assert_eq!(
        Signature::parse(&base64(&[1; 32])),
        Err(KeyError::Length {
            expected: 64,
            found: 32
        })
    );
    assert!(matches!(
        PublicKey::parse(&format!("k:{}!", "A".repeat(42))),
        Err(KeyError::Base64(_))
    ));
    assert!(matches!(
        PublicKey::parse(&format!("k:{}B=", "A".repeat(42))),
        Err(KeyError::Base64(_))
    ));
    assert!(matches!(
        Signature::parse(&format!("{} ", base64(&[1; 64]))),
        Err(KeyError::Base64(_))
    ));

    // A y coordinate without an x; then the neutral element, which has order 1.
    let mut bytes = [0; 32];
    bytes[0] = 2;
    assert_eq!(
        PublicKey::parse(&base64(&bytes)),
        Err(KeyError::NotACurvePoint)
    );
    bytes[0] = 1;
    assert_eq!(PublicKey::parse(&base64(&bytes)), Err(KeyError::Weak));
}

#[test]
fn padding_is_not_looked_at() {
    let key = PublicKey::parse(samples::PUBLIC_KEY).unwrap();
    assert_eq!(
        PublicKey::parse(samples::PUBLIC_KEY.trim_end_matches('=')),
        Ok(key)
    );
    let text = hello().signatures[0].to_string();
    assert_eq!(
        Signature::parse(text.trim_end_matches('='))
            .unwrap()
            .to_string(),
        text
    );
    assert!(Signature::parse(&format!("{text}=")).is_err());
}

#[test]
fn a_secret_key_is_a_whole_and_never_shown() {
    let text = format!("\n {}\t\n", samples::SECRET_KEY);
    let secret = SecretKey::parse(&text).unwrap();
    assert_eq!(format!("{secret:?}"), "SecretKey { name: \"k-1\", .. }");

    let (name, base64) = samples::SECRET_KEY.split_once(':').unwrap();
    let mut bytes = BASE64.decode(base64.as_bytes()).unwrap();
    bytes[40] ^= 1;
    let torn = SecretKey::parse(&format!("{name}:{}", BASE64.encode(&bytes))).unwrap_err();
    assert_eq!(torn, KeyError::Mismatch);
    let half = SecretKey::parse(&format!("{name}:{}", BASE64.encode(&bytes[..32]))).unwrap_err();
    assert_eq!(
        half,
        KeyError::Length {
            expected: 64,
            found: 32
        }
    );
    let spoiled = SecretKey::parse(&samples::SECRET_KEY.replace('w', "*")).unwrap_err();
    let swapped = SecretKey::parse(&format!("{base64}{name}")).unwrap_err();
    for error in [torn, half, spoiled, swapped] {
        let shown = format!("{error:?} {error}");
        assert!(
            !base64
                .as_bytes()
                .windows(6)
                .any(|part| shown.as_bytes().windows(6).any(|it| it == part))
        );
    }
}

proptest! {
    #[test]
    fn parses_what_it_prints(info in samples::info(), seed: [u8; 32]) {
        for signature in &info.signatures {
            let text = signature.to_string();
            prop_assert_eq!(text.len(), signature.text_len());
            prop_assert_eq!(&Signature::parse(&text).unwrap(), signature);
        }
        let key = PublicKey { name: "name".into(), key: SigningKey::from_bytes(&seed).verifying_key() };
        prop_assert_eq!(PublicKey::parse(&key.to_string()), Ok(key));
    }

    #[test]
    fn verifies_what_it_signs(mut info in samples::info()) {
        let (dir, secret) = (StoreDir::default(), samples::secret_key());
        let signature = secret.sign_info(&dir, &info);
        info.signatures.push(signature.clone());
        let keys: TrustedKeys = [secret.public_key()].into_iter().collect();
        prop_assert_eq!(keys.verify(&dir, &info), Some(&signature));
    }

    #[test]
    fn never_panics(text: String, close in "[a-z]{0,3}:?[A-Za-z0-9+/=]{0,90}") {
        for text in [text, close] {
            Signature::parse(&text).ok();
            PublicKey::parse(&text).ok();
            SecretKey::parse(&text).ok();
        }
    }
}
