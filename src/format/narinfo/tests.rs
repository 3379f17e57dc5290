use proptest::prelude::*;

use super::*;
use crate::format::{base32::Base32Error, samples};

const PATH: &str = "/nix/store/ab3li50xq0nl4q5lxdyinb8w8y13my9s-f";
const HASH: &str = "sha256:1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h";

fn parse(text: &str) -> Result<Narinfo, NarinfoError> {
    Narinfo::parse(&StoreDir::default(), text.as_bytes())
}

/// The least that a narinfo must have, and `more`.
fn with(more: &str) -> Result<Narinfo, NarinfoError> {
    parse(&format!(
        "StorePath: {PATH}\nURL: nar/x.nar\nNarHash: {HASH}\nNarSize: 120\n{more}"
    ))
}

#[test]
fn reads_what_nix_wrote_and_prints_it_in_the_old_order() {
    for ((dir, narinfo), text) in samples::narinfos().zip(samples::NARINFOS) {
        // Ours has neither FileHash nor FileSize, and is otherwise in the order of Nix.
        let expected: String = text
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("File"))
            .collect();
        assert_eq!(narinfo.print(&dir), expected);
    }
    let narinfo = parse(samples::HELLO).unwrap();
    assert_eq!(narinfo.compression, Compression::Other("xz".into()));
    assert_eq!(narinfo.info.nar_size, 205_968);
    assert_eq!(narinfo.info.references.len(), 2);
}

#[test]
fn every_printed_line_has_a_name_and_a_colon() {
    let printed = with("").unwrap().print(&StoreDir::default());
    let names: Vec<_> = printed
        .lines()
        .map(|line| line.split_once(':').unwrap().0)
        .collect();
    assert_eq!(
        names,
        [
            "StorePath",
            "URL",
            "Compression",
            "NarHash",
            "NarSize",
            "References"
        ]
    );
    assert!(printed.ends_with("\nReferences: \n"));
}

#[test]
fn printing_allocates_once() {
    for (dir, narinfo) in samples::narinfos() {
        let least = narinfo.printed_len(&dir);
        assert!(narinfo.print(&dir).len() <= least);
        let most = PathInfo {
            nar_size: u64::MAX,
            ..narinfo.info.clone()
        };
        assert!(
            Narinfo {
                info: most,
                ..narinfo
            }
            .print(&dir)
            .len()
                <= least
        );
    }
}

#[test]
fn fields_that_may_be_absent_or_empty() {
    let least = with("").unwrap();
    assert_eq!(least.compression, Compression::Other("bzip2".into()));
    assert_eq!(least.info.references, []);
    assert_eq!((&least.info.deriver, &least.info.ca), (&None, &None));

    for same in [
        "References: \n",
        "References:\n",
        "Deriver: unknown-deriver\n",
        "Deriver: \n",
        "CA: \n",
    ] {
        assert_eq!(with(same), Ok(least.clone()), "{same}");
    }
    for same in [
        "System: x86_64-linux\n",
        "Unknown: \u{e9}: :\nUnknown: again\n",
        "FileHash: odd\n",
    ] {
        assert_eq!(with(same), Ok(least.clone()), "{same}");
    }
    let with_size = with("FileSize: 0\n").unwrap();
    assert_eq!(with_size.file_size, Some(0));
    assert_eq!(with_size.info, least.info);
    assert_eq!(
        with("Compression: none").unwrap().compression,
        Compression::None
    );
    assert_eq!(
        with("Compression: zstd").unwrap().compression,
        Compression::Zstd
    );
    assert_eq!(
        with("Compression: \n").unwrap().compression,
        Compression::default()
    );
}

#[test]
fn tolerates_what_old_caches_write() {
    let clean = with("Deriver: z5ivr36ksfl8h2zzm29y0q1s4wcl79ic-f.drv\n").unwrap();
    for same in [
        "Deriver: z5ivr36ksfl8h2zzm29y0q1s4wcl79ic-f.drv",
        "Deriver: z5ivr36ksfl8h2zzm29y0q1s4wcl79ic-f.drv \n\n\n",
    ] {
        assert_eq!(with(same), Ok(clean.clone()), "{same:?}");
    }
}

#[test]
fn references_are_a_sorted_set() {
    let names = |text: &str| -> Vec<String> {
        let references = with(text).unwrap().info.references;
        references
            .iter()
            .map(|it| it.basename().to_owned())
            .collect()
    };
    let (a, b) = (
        "0000000000000000000000000000000a-z",
        "0000000000000000000000000000000b-a",
    );
    assert_eq!(names(&format!("References: {b} {a}  {b} \n")), [a, b]);
    assert_eq!(
        names(&format!("References: {a}-x {a}\n")),
        [a.to_owned(), format!("{a}-x")]
    );

    let bad = with(&format!("References: {a} nonsense\n"));
    assert!(matches!(
        bad,
        Err(NarinfoError::Path {
            field: "References",
            ..
        })
    ));
    let many = with(&format!("References:{}\n", format!(" {a}").repeat(20_001)));
    assert_eq!(many.unwrap().info.references.len(), 1);
}

#[test]
fn required_fields_are_required() {
    let lines = [
        ("StorePath", format!("StorePath: {PATH}\n")),
        ("URL", "URL: nar/x.nar\n".to_owned()),
        ("NarHash", format!("NarHash: {HASH}\n")),
        ("NarSize", "NarSize: 120\n".to_owned()),
    ];
    for (field, _) in &lines {
        let others = lines.iter().filter(|(name, _)| name != field);
        let text: String = others.map(|(_, line)| line.as_str()).collect();
        assert_eq!(parse(&text), Err(NarinfoError::Missing { field }));
    }
}

#[test]
fn every_field_but_sig_is_there_once() {
    let lines = "Compression: none\nFileHash: x\nFileSize: 1\nReferences: \nDeriver: unknown-deriver\nCA: \n";
    let whole = with(lines).unwrap().print(&StoreDir::default()) + lines;
    for line in whole.lines() {
        let text = format!("{lines}{line}\n");
        let field = line.split_once(':').unwrap().0;
        match with(&text) {
            Err(NarinfoError::Duplicate { field: found }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }

    let signature = samples::secret_key().sign("text");
    let narinfo = with(&format!("Sig: {signature}\n").repeat(2)).unwrap();
    assert_eq!(
        narinfo.info.signatures,
        [signature.clone(), signature.clone()]
    );
    for count in [41, 1_000] {
        let many = with(&format!("Sig: {signature}\n").repeat(count)).unwrap();
        assert_eq!(many.info.signatures.len(), count);
        assert_eq!(
            Narinfo::parse(
                &StoreDir::default(),
                many.print(&StoreDir::default()).as_bytes()
            )
            .unwrap(),
            many
        );
    }
}

#[test]
fn malformed_lines_are_named_by_number() {
    for bad in [
        "\nA: b", "A", "A:b", ": b", " ", "A: b\r\n", "\r\n", "A b: \r",
    ] {
        assert_eq!(
            with(&format!("{bad}\n")),
            Err(NarinfoError::Line { number: 5 }),
            "{bad:?}"
        );
    }
    assert_eq!(parse(""), Err(NarinfoError::Line { number: 1 }));
    assert_eq!(
        parse(&samples::HELLO.replace('\n', "\r\n")),
        Err(NarinfoError::Line { number: 1 })
    );
    assert!(matches!(
        Narinfo::parse(&StoreDir::default(), b"A: \xff\n"),
        Err(NarinfoError::NotUtf8(_))
    ));
}

#[test]
fn malformed_values_are_named_by_field() {
    let changed = |from: &str, to: &str| {
        let text = format!("StorePath: {PATH}\nURL: nar/x.nar\nNarHash: {HASH}\nNarSize: 120\n");
        assert!(text.contains(from));
        parse(&text.replace(from, to)).unwrap_err()
    };
    for bad in [
        "",
        "ab3li50xq0nl4q5lxdyinb8w8y13my9s-f",
        "/gnu/store/ab3li50xq0nl4q5lxdyinb8w8y13my9s-f",
    ] {
        assert!(
            matches!(
                changed(PATH, bad),
                NarinfoError::Path {
                    field: "StorePath",
                    ..
                }
            ),
            "{bad}"
        );
    }
    for bad in ["0", "00"] {
        assert_eq!(changed("120", bad), NarinfoError::EmptyNar);
    }
    for bad in [
        "",
        "+1",
        "-1",
        "1x",
        "0x10",
        "1 2",
        "1.0",
        "18446744073709551616",
        "\u{663}",
    ] {
        assert_eq!(
            changed("120", bad),
            NarinfoError::Number { field: "NarSize" },
            "{bad}"
        );
    }
    assert!(matches!(
        changed(HASH, "md5:x"),
        NarinfoError::NarHash(StorePathError::NotSha256)
    ));
    let short = NarinfoError::NarHash(StorePathError::NarHashBase32(Base32Error::Length {
        expected: 52,
        found: 0,
    }));
    assert_eq!(changed(HASH, "sha256:"), short);
    assert!(matches!(
        changed("nar/x.nar", "http://evil/x"),
        NarinfoError::Url(UrlError::Scheme)
    ));
    assert!(matches!(changed("nar/x.nar", ""), NarinfoError::Url(_)));

    for bad in ["a b", "a/b", "\u{e9}", &"x".repeat(33)] {
        assert_eq!(
            with(&format!("Compression: {bad}\n")),
            Err(NarinfoError::Compression),
            "{bad}"
        );
    }
    assert!(matches!(
        with("Deriver: x\n"),
        Err(NarinfoError::Path {
            field: "Deriver",
            ..
        })
    ));
    assert!(matches!(
        with("Sig: x\n"),
        Err(NarinfoError::Signature(KeyError::NoColon))
    ));
    assert!(matches!(
        with("Sig: \n"),
        Err(NarinfoError::Signature(KeyError::NoColon))
    ));
    assert!(matches!(
        with("CA: fixed:r:sha256:0\n"),
        Err(NarinfoError::ContentAddress(_))
    ));
    assert_eq!(
        with("FileSize: x\n"),
        Err(NarinfoError::Number { field: "FileSize" })
    );
}

#[test]
fn the_hash_may_be_hexadecimal() {
    let base16 = format!("sha256:{}", "a5".repeat(32));
    let narinfo = parse(&samples::HELLO.replace(
        "sha256:1mi14cqk363wv368ffiiy01knardmnlyphi6h9xv6dkjz44hk30i",
        &base16,
    ));
    assert_eq!(narinfo.unwrap().info.nar_hash.digest(), &[0xa5; 32]);
}

#[test]
fn an_unknown_content_address_survives() {
    let ca = "CA: fixed:git:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm\n";
    assert!(with(ca).unwrap().print(&StoreDir::default()).ends_with(ca));
}

#[test]
fn numbers_print_as_they_do_elsewhere() {
    for number in [0, 9, 10, 1_234_567_890, u64::MAX] {
        let mut text = String::new();
        push_number(number, &mut text);
        assert_eq!(text, number.to_string());
    }
}

fn narinfo() -> impl Strategy<Value = Narinfo> {
    let compression = prop_oneof![
        Just(Compression::None),
        Just(Compression::Zstd),
        Just(Compression::Other("xz".into())),
    ];
    let url = "[a-z0-9]{1,9}/[a-z0-9._=-]{0,9}x(\\?[a-z=/.%]{0,9})?";
    (samples::info(), url, compression).prop_map(|(info, url, compression)| Narinfo {
        info,
        url: NarUrl::parse(&url).unwrap(),
        compression,
        file_size: None,
    })
}

proptest! {
    #[test]
    fn parses_what_it_prints(narinfo in narinfo()) {
        let dir = StoreDir::default();
        let text = narinfo.print(&dir);
        prop_assert!(text.len() <= narinfo.printed_len(&dir));
        prop_assert_eq!(Narinfo::parse(&dir, text.as_bytes()), Ok(narinfo));
    }

    #[test]
    fn never_panics(bytes: Vec<u8>, text: String, at: prop::sample::Index, byte: u8) {
        let dir = StoreDir::default();
        Narinfo::parse(&dir, &bytes).ok();
        with(&text).ok();
        let mut close = samples::HELLO.as_bytes().to_vec();
        let at = at.index(close.len());
        close[at] = byte;
        Narinfo::parse(&dir, &close).ok();
        close.truncate(at);
        Narinfo::parse(&dir, &close).ok();
    }
}
