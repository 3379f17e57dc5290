use super::*;

fn error(text: &str) -> String {
    Config::parse(text).expect_err(text).to_string()
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(Config::parse("").expect("empty"), Config::default());
}

#[test]
fn the_shipped_file_is_the_defaults_and_names_every_key() {
    let shipped = include_str!("../../systemd/peerix.toml");
    assert_eq!(
        Config::parse(shipped).expect("as shipped"),
        Config::default()
    );

    let keyed = |text: &str| {
        let mut table = String::new();
        let mut keys = Vec::new();
        for line in text.lines() {
            let line = line.strip_prefix("# ").unwrap_or(line).trim();
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                table = format!("{name}.");
            } else if let Some((key, _)) = line.split_once(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            {
                keys.push(format!("{table}{key}"));
            }
        }
        keys.sort();
        keys
    };
    // What has no default value is in the file as a commented example.
    let mut expected = keyed(&Config::default().to_toml().expect("serializable"));
    for optional in [
        "group",
        "idle.timeout",
        "discovery.domain",
        "limits.upload",
        "share.paths",
        "signing.key-file",
        "store.real-dir",
    ] {
        expected.push(optional.into());
    }
    expected.sort();
    assert_eq!(keyed(shipped), expected);
}

#[test]
fn every_commented_example_of_the_shipped_file_is_accepted() {
    let shipped = include_str!("../../systemd/peerix.toml");
    let uncommented: String = shipped
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.split_once(" = ").is_some_and(|(key, _)| {
                    key.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                }) =>
            {
                rest
            }
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    Config::parse(&uncommented).expect("examples");
}

#[test]
fn what_is_printed_parses_to_the_same() {
    let text = r#"
        port = 1234
        allowed-networks = ["10.0.0.0/8"]
        [idle]
        timeout = "10s"
        [discovery]
        peers = [
            "192.168.1.5", "10.0.0.1:99", "[fd00::5]:12304", "fe80::1",
            "nas.lan", "nas.lan:12304", "http://nas.lan:5000/cache",
            "[fe80::1%eth0]:12304", "fe80::1%eth0", "fe80::1%2",
        ]
        dns-sd = false
        domain = "example.org"
        [share]
        paths = "built"
        [limits]
        upload = "1MiB"
    "#;
    let config = Config::parse(text).expect("well-formed");
    let printed = config.to_toml().expect("serializable");
    assert_eq!(Config::parse(&printed).expect("printed"), config);
}

#[test]
fn an_error_names_key_line_and_what_would_be_right() {
    let too_many = format!("[discovery]\npeers = [{}]", "\"nas\",".repeat(513));
    for (text, parts) in [
        ("port = 1\nprot = 2", &["line 2", "prot", "port"][..]),
        ("port = 99999", &["line 1", "99999", "1 to 65535"]),
        ("port = \"x\"", &["line 1", "port", "expected i64"]),
        (
            "[idle]\ntimeout = 5",
            &["line 2", "timeout", "a duration in quotes"],
        ),
        (
            "[idle]\ntimeout = \"5 parsecs\"",
            &["line 2", "5 parsecs", "1min"],
        ),
        ("[limits]\n\nbuffer = \"40MB\"", &["line 3", "40MB", "MiB"]),
        (
            "[share]\npaths = \"some\"",
            &["line 2", "some", "`signed`", "`built`"],
        ),
        ("[share]\nexclude = [\"[\"]", &["line 2", "not a glob"]),
        (
            "[discovery]\npeers = [\"10.0.0.256\"]",
            &[
                "line 2",
                "10.0.0.256",
                "ends in a number",
                "192.168.1.5:12304",
            ],
        ),
        (
            "[discovery]\npeers = [\"https://nas.lan\"]",
            &["line 2", "https://nas.lan", "no TLS", "http://"],
        ),
        (
            "[discovery]\ndomain = \"example..org\"",
            &["line 2", "example..org", "a part of it is empty"],
        ),
        ("[discovery]\ndomain = 5", &["line 2", "a domain in quotes"]),
        (&too_many, &["discovery.peers = 513 entries", "at most 512"]),
        (
            "[trust]\npublic-keys = [\"nokey\"]",
            &["line 2", "nokey", "NAME:BASE64"],
        ),
        ("[store]\ndir = \"nix\"", &["line 2", "nix"]),
        (
            "allowed-networks = [\"10.0.0.0/99\"]",
            &["line 1", "allowed-networks"],
        ),
        ("this is not toml", &["line 1"]),
        (
            "[limits]\nconnections = 3",
            &["limits.connections = 3", "128 or more"],
        ),
        ("[limits]\ndrain = \"10s\"", &["limits.drain = 10s", "4s"]),
        (
            "[limits]\nstall = \"1ms\"",
            &["limits.stall = 1ms", "100ms"],
        ),
        (
            "[limits]\nstall = \"30s\"",
            &["limits.stall-alone = 2s", "4min"],
        ),
        (
            "[discovery]\ntimeout = \"1s\"",
            &["discovery.timeout = 1s", "wake-timeout"],
        ),
    ] {
        let error = error(text);
        for part in parts {
            assert!(
                error.contains(part),
                "`{part}` is missing for {text:?}: {error}"
            );
        }
    }
}

#[test]
fn an_interface_is_used_if_included_and_not_excluded() {
    let default = Interfaces::default();
    assert!(
        default.allow("eth0")
            && default.allow("wlp3s0")
            && !default.allow("docker0")
            && !default.allow("veth12")
    );
    let chosen = Config::parse("[interfaces]\ninclude = [\"eth*\"]\nexclude = [\"eth1\"]")
        .expect("config")
        .interfaces;
    assert!(chosen.allow("eth0") && !chosen.allow("eth1") && !chosen.allow("wlp3s0"));
}

#[test]
fn a_mapped_address_is_judged_as_the_ipv4_address_it_is() {
    let config = Config::default();
    for allowed in [
        "::ffff:127.0.0.1",
        "::ffff:192.168.1.1",
        "10.1.2.3",
        "fe80::1",
        "fd00::1",
        "100.64.0.1",
    ] {
        assert!(
            config.allows(allowed.parse().expect("address")),
            "{allowed}"
        );
    }
    for refused in [
        "::ffff:8.8.8.8",
        "8.8.8.8",
        "2001:db8::1",
        "172.32.0.1",
        "100.128.0.1",
    ] {
        assert!(
            !config.allows(refused.parse().expect("address")),
            "{refused}"
        );
    }
}

#[test]
fn without_systemd_only_an_explicit_timeout_ends_an_idle_daemon() {
    assert_eq!(Idle::default().timeout(true), Some(DEFAULT_IDLE_TIMEOUT));
    assert_eq!(Idle::default().timeout(false), None);
    let explicit = Config::parse("[idle]\ntimeout = \"2s\"")
        .expect("config")
        .idle;
    assert_eq!(explicit.timeout(false), Some(Duration::from_secs(2)));
    let never = Config::parse("[idle]\ntimeout = \"0s\"")
        .expect("config")
        .idle;
    assert_eq!(never.timeout(true), None);
}
