//! The NixOS module, the package and the flake, evaluated by the Nix that is installed. Nixpkgs is not
//! needed: tests/nixos has a stand-in, which says what it does not cover.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use support::{documents::blocks, skip};

/// Fewer would not try every option and every assertion.
const LEAST_CASES: usize = 12;

/// The value of a Nix expression in the root of the source; nothing where there is no Nix.
fn evaluate(expression: &str) -> Option<Value> {
    let output = output(Command::new("nix-instantiate").args([
        "--eval", "--strict", "--json", "--store", "dummy://", "-E", expression,
    ]))?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{expression}: {error}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// What `nix flake ...` says of this checkout, with a store of its own.
fn flake(command: &str, args: &[&str]) -> Option<Value> {
    let state = tempfile::tempdir().expect("a temporary directory");
    let output = output(
        Command::new("nix")
            .args(["--extra-experimental-features", "nix-command flakes"])
            .args(["flake", command, "--json"])
            .args(args)
            .arg(tracked())
            .env("NIX_STORE_DIR", state.path().join("store"))
            .env("NIX_STATE_DIR", state.path().join("state"))
            .env("NIX_LOG_DIR", state.path().join("log")),
    )?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// What a program says that works in the root of the source and knows no settings of its user;
/// nothing, and it is said aloud, where there is no such program.
fn output(command: &mut Command) -> Option<Output> {
    let home = tempfile::tempdir().expect("a temporary directory");
    let program = command.get_program().to_owned();
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOME", home.path())
        .env("NIX_CONF_DIR", home.path())
        .env_remove("NIX_REMOTE");
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip(&format!("{} is not installed", program.display()));
            None
        }
        Err(error) => panic!("{}: {error}", program.display()),
    }
}

fn results() -> Option<serde_json::Map<String, Value>> {
    match evaluate("(import ./tests/nixos { }).results")? {
        Value::Object(results) => Some(results),
        other => panic!("a set of results, not {other}"),
    }
}

/// What is unlike at one place, with its path.
fn differences(path: &str, got: &Value, expected: &Value, found: &mut String) {
    match (got, expected) {
        (Value::Object(got), Value::Object(expected)) => {
            for key in got.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
                let of = |object: &serde_json::Map<String, Value>| {
                    object.get(key).cloned().unwrap_or(Value::Null)
                };
                differences(&format!("{path}/{key}"), &of(got), &of(expected), found);
            }
        }
        _ if got == expected => {}
        _ => writeln!(found, "{path}:\n  got      {got}\n  expected {expected}").expect("a string"),
    }
}

#[test]
fn each_configuration_makes_the_units_settings_and_messages_that_are_expected() {
    let Some(results) = results() else { return };
    assert!(results.len() >= LEAST_CASES, "only {}", results.len());
    let mut found = String::new();
    for (name, case) in &results {
        differences(name, &case["got"], &case["expected"], &mut found);
    }
    assert!(found.is_empty(), "{found}");
}

#[test]
fn the_program_accepts_the_settings_of_each_configuration_and_no_unknown_one() {
    let Some(results) = results() else { return };
    let check = |text: &str| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("peerix.toml");
        fs::write(&file, text).expect("write");
        Command::new(env!("CARGO_BIN_EXE_peerix"))
            .args(["--check-config", "--config"])
            .arg(&file)
            .output()
            .expect("peerix runs")
    };
    let mut checked = 0;
    for (name, case) in &results {
        // A secret key that is no option of the service is not here either; a script is no settings.
        let failing = case["got"]["failures"]
            .as_array()
            .is_some_and(|it| !it.is_empty());
        let Some(text) = case["got"]["files"]["peerix/peerix.toml"].as_str() else {
            continue;
        };
        if failing || text.contains("--check-config") {
            continue;
        }
        let output = check(text);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}\n{text}");
        checked += 1;
    }
    assert!(checked >= LEAST_CASES, "only {checked}");

    // Nix takes it, since the type of `settings` is open: the build of the system does not.
    let text = evaluate("(import ./tests/nixos { }).settingsOf { discovery.brodcast = true; }")
        .expect("there was a Nix a moment ago");
    let output = check(text.as_str().expect("the file's text"));
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("brodcast"), "{stderr}");
}

#[test]
fn each_setting_of_the_program_has_a_typed_option_and_no_other_has() {
    let Some(keys) = evaluate("(import ./tests/nixos { }).keys") else {
        return;
    };
    let mut typed = BTreeSet::new();
    fn collect(prefix: &str, value: &Value, typed: &mut BTreeSet<String>) {
        match value {
            Value::Object(table) => {
                for (name, value) in table {
                    collect(&format!("{prefix}{name}."), value, typed);
                }
            }
            _ => {
                typed.insert(prefix.trim_end_matches('.').to_owned());
            }
        }
    }
    collect("", &keys, &mut typed);
    // The reference has every key; tests/manuals holds it to that.
    let reference = include_str!("../docs/configuration.md").lines();
    let keys: BTreeSet<String> = reference
        .filter_map(|line| line.strip_prefix("#### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    assert!(keys.contains("discovery.peers"));
    assert_eq!(typed, keys);
}

#[test]
fn the_flake_has_what_users_of_flakes_look_for() {
    let stand_in = format!("path:{}/tests/nixos", env!("CARGO_MANIFEST_DIR"));
    let Some(shown) = flake(
        "show",
        &[
            "--no-write-lock-file",
            "--override-input",
            "nixpkgs",
            &stand_in,
        ],
    ) else {
        return;
    };
    for system in ["x86_64-linux", "aarch64-linux"] {
        for (kind, names) in [
            ("packages", &["default", "peerix"][..]),
            ("apps", &["default", "peerix"]),
            ("devShells", &["default"]),
            (
                "checks",
                &[
                    "clippy",
                    "format",
                    "package",
                    "vm-hardening",
                    "vm-idle",
                    "vm-old-peer",
                    "vm-pull",
                ],
            ),
        ] {
            let there = shown[kind][system]
                .as_object()
                .unwrap_or_else(|| panic!("{kind}.{system}"));
            assert_eq!(there.keys().collect::<Vec<_>>(), names, "{kind}.{system}");
        }
        assert_eq!(shown["formatter"][system]["type"], "derivation");
        assert_eq!(
            shown["packages"][system]["peerix"]["name"],
            format!("peerix-{}", env!("CARGO_PKG_VERSION"))
        );
    }
    assert_eq!(shown["overlays"]["default"]["type"], "nixpkgs-overlay");
    for name in ["default", "peerix"] {
        assert_eq!(shown["nixosModules"][name]["type"], "nixos-module");
    }
}

/// The flake of this checkout: what git knows of it, so that Nix does not copy target/. A source
/// without git is copied whole.
fn tracked() -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    if Path::new(root).join(".git").exists() {
        format!("git+file://{root}")
    } else {
        format!("path:{root}")
    }
}

#[test]
fn the_lock_file_is_the_one_that_flake_nix_asks_for() {
    let Some(metadata) = flake("metadata", &["--no-update-lock-file"]) else {
        return;
    };
    let nodes = metadata["locks"]["nodes"].as_object().expect("nodes");
    assert_eq!(
        nodes.keys().collect::<Vec<_>>(),
        ["nixpkgs", "root"],
        "nixpkgs is the only input"
    );
    let locked = &nodes["nixpkgs"]["locked"];
    assert_eq!(
        (&locked["owner"], &locked["repo"]),
        (&"NixOS".into(), &"nixpkgs".into())
    );
    assert_eq!(locked["rev"].as_str().map(str::len), Some(40));
    assert!(
        locked["narHash"]
            .as_str()
            .is_some_and(|hash| hash.starts_with("sha256-"))
    );
}

#[test]
fn the_vm_tests_are_whole_configurations_and_their_scripts_are_python() {
    let Some(tests) = evaluate("(import ./tests/nixos { }).vmTests") else {
        return;
    };
    let tests = tests.as_object().expect("a set of tests");
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("nixos/tests"))
        .expect("nixos/tests");
    let expected: BTreeSet<String> = files
        .map(|file| {
            file.expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter_map(|name| Some(format!("vm-{}", name.strip_suffix(".nix")?)))
        .filter(|name| name != "vm-default")
        .collect();
    assert_eq!(tests.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (name, test) in tests {
        for (node, rendered) in test["nodes"].as_object().expect("nodes") {
            assert_eq!(
                rendered["failures"],
                Value::Array(Vec::new()),
                "{name}: {node}"
            );
        }
        let script = test["script"].as_str().expect("a script");
        let Some(output) = output(Command::new("python3").args([
            "-c",
            "import ast, sys; ast.parse(sys.argv[1])",
            script,
        ])) else {
            return;
        };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
    }
}

/// Runs the package's own installation, with the shell functions of the builder in their simplest form.
#[test]
fn the_package_installs_units_that_name_nothing_of_another_distribution() {
    let Some(package) = evaluate("(import ./tests/nixos { }).package") else {
        return;
    };
    let out = tempfile::tempdir().expect("a temporary directory");
    let program = out.path().join("bin/peerix");
    fs::create_dir(out.path().join("bin")).expect("bin");
    fs::copy(env!("CARGO_BIN_EXE_peerix"), &program).expect("the program");
    let builder = r#"
        set -euo pipefail
        runHook() { :; }
        installManPage() {
            for page; do install -D -m 644 "$page" "$out/share/man/man${page##*.}/${page##*/}"; done
        }
        installShellCompletion() {
            for file; do if [ -f "$file" ]; then install -D -m 644 -t "$out/share/completions" "$file"; fi; done
        }
        # FILE... (--replace-fail|--replace-quiet FROM TO)...
        substituteInPlace() {
            local files=() file
            while [ "${1#--}" = "$1" ]; do files+=("$1"); shift; done
            while [ $# -gt 0 ]; do
                for file in "${files[@]}"; do
                    [ "$1" = --replace-quiet ] || grep -qF -- "$2" "$file"
                    python3 -c 'import pathlib, sys
file, old, new = sys.argv[1:]
text = pathlib.Path(file).read_text()
pathlib.Path(file).write_text(text.replace(old, new))' "$file" "$2" "$3"
                done
                shift 3
            done
        }
    "#;
    let text = |name: &str| package[name].as_str().expect("a script").to_owned();
    let script = [builder, &text("postInstall"), &text("installCheckPhase")].join("\n");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("out", out.path())
        .output()
        .expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    let unit = |name: &str| {
        fs::read_to_string(out.path().join("lib/systemd/system").join(name)).expect(name)
    };
    let start = format!("ExecStart={}\n", program.display());
    assert!(unit("peerix.service").contains(&start));
    assert!(
        unit("peerix-refresh.service")
            .contains(&format!("ExecStart={} refresh\n", program.display()))
    );
    for name in ["peerix.service", "peerix.socket"] {
        let unit = unit(name);
        let calls: Vec<_> = unit
            .lines()
            .filter(|line| line.contains("systemctl reset-failed"))
            .collect();
        assert!(!calls.is_empty(), "{name}");
        for call in calls.iter().filter(|call| call.starts_with("Exec")) {
            assert!(
                call.contains(
                    "/nix/store/00000000000000000000000000000000-systemd-257.10/bin/systemctl"
                ),
                "{call}"
            );
        }
    }
    for file in [
        "man/man8/peerix.8",
        "man/man5/peerix.toml.5",
        "completions/_peerix",
        "doc/peerix/peerix.toml",
    ] {
        assert!(out.path().join("share").join(file).exists(), "{file}");
    }
}

#[test]
fn each_nix_example_of_the_documents_evaluates_without_a_failure() {
    let mut evaluated = 0;
    for block in blocks("nix") {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("example.nix");
        fs::write(&file, &block.text).expect("write");
        // The reader's own.
        fs::write(directory.path().join("configuration.nix"), "{ }").expect("write");
        let checkout = directory.path().join("peerix");
        symlink(env!("CARGO_MANIFEST_DIR"), &checkout)
            .expect("a checkout beside the configuration");
        let expression = format!("(import ./tests/nixos {{ }}).example {}", file.display());
        let Some(rendered) = evaluate(&expression) else {
            return;
        };
        assert!(
            rendered.is_object(),
            "{} does not evaluate:\n{}",
            block.place,
            block.text
        );
        assert_eq!(
            rendered["failures"],
            Value::Array(Vec::new()),
            "{}",
            block.place
        );
        assert!(
            rendered["units"]["peerix.socket"].is_object(),
            "{}: peerix is not enabled",
            block.place
        );
        evaluated += 1;
    }
    assert!(evaluated > 0, "the documents have no example");
}
