//! Dropping privileges for real: each test in a process of its own, as root.

#![expect(
    clippy::unwrap_used,
    reason = "a test says by panicking that it failed"
)]
#![expect(clippy::print_stderr, reason = "what was skipped is said aloud")]

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    sync::mpsc,
    thread,
    time::Duration,
};

use caps::{CapSet, Capability};
use nix::{
    sys::{
        prctl,
        signal::{Signal, raise},
        wait::waitpid,
    },
    unistd::{ForkResult, Gid, Uid, alarm, fork, geteuid, pipe, setgroups, setresgid, setresuid},
};
use peerix::system::{journal::chain, notify::Notifier, privileges::drop_and_verify};

const NOBODY: u32 = 65_534;

/// What /proc shows of a thread without any privilege. The ids are those of the user and group.
fn nothing_left(uid: u32, gid: u32, groups: &str) -> String {
    format!(
        "Uid {uid} {uid} {uid} {uid}|Gid {gid} {gid} {gid} {gid}|Groups{groups}|CapInh 0|CapPrm 0|CapEff 0|CapBnd 0|CapAmb 0|NoNewPrivs 1"
    )
}

fn privileges() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let of = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .replace(':', "");
        let words = line.split_whitespace().map(|word| {
            if word.trim_matches('0').is_empty() {
                "0"
            } else {
                word
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
    ]
    .map(of)
    .join("|")
}

/// Runs `job` as root in a child process with one thread; `None`, and said so, without root.
fn as_root(job: impl FnOnce() -> String) -> Option<String> {
    if !geteuid().is_root() {
        eprintln!("skipped: not root");
        return None;
    }
    let (mut reader, mut writer) = pipe()
        .map(|(reader, writer)| (File::from(reader), File::from(writer)))
        .unwrap();
    #[expect(
        unsafe_code,
        reason = "privileges cannot come back, so a process of its own gives them up"
    )]
    // SAFETY: the child touches no lock that another thread could have held: it allocates, which
    // glibc allows after fork, and ends without running anything of its parent's.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            alarm::set(20);
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
                .unwrap_or_else(|panic| format!("panicked: {:?}", panic.downcast_ref::<String>()));
            writer.write_all(answer.as_bytes()).unwrap();
            raise(Signal::SIGKILL).unwrap();
            unreachable!("killed")
        }
    };
    drop(writer);
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    waitpid(child, None).unwrap();
    Some(answer)
}

fn dropped(user: &str, group: Option<&str>) -> String {
    match drop_and_verify(user, group) {
        Ok(identity) => format!("{} {}", identity.uid, identity.gid),
        Err(error) => format!("config={} {}", error.is_config(), chain(&error)),
    }
}

/// Becomes nobody as a shell's user is, keeping the given capabilities.
fn become_ordinary(keep: &[Capability]) {
    prctl::set_keepcaps(true).unwrap();
    setgroups(&[Gid::from_raw(4), Gid::from_raw(24)]).unwrap();
    setresgid(
        Gid::from_raw(NOBODY),
        Gid::from_raw(NOBODY),
        Gid::from_raw(NOBODY),
    )
    .unwrap();
    setresuid(
        Uid::from_raw(NOBODY),
        Uid::from_raw(NOBODY),
        Uid::from_raw(NOBODY),
    )
    .unwrap();
    let keep = keep.iter().copied().collect();
    for set in [
        CapSet::Permitted,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Ambient,
    ] {
        caps::set(None, set, &keep).unwrap();
    }
}

#[test]
fn root_becomes_nobody_in_every_thread() {
    let answer = as_root(|| {
        let who = dropped("nobody", None);
        let later = thread::spawn(privileges).join().unwrap();
        assert_eq!(later, privileges(), "a thread made afterwards has no more");
        let forbidden = [
            setresuid(Uid::from_raw(NOBODY), Uid::from_raw(0), Uid::from_raw(0)).is_err(),
            setgroups(&[]).is_err(),
            File::open("/etc/shadow").is_err(),
            fs::write("/run/peerix-test", "").is_err(),
            caps::raise(None, CapSet::Effective, Capability::CAP_NET_RAW).is_err(),
            prctl::get_dumpable() == Ok(false),
        ];
        format!("{who} {later} {forbidden:?}")
    });
    if let Some(answer) = answer {
        let nothing = nothing_left(NOBODY, NOBODY, " 65534");
        assert_eq!(
            answer,
            format!("65534 65534 {nothing} [true, true, true, true, true, true]")
        );
    }
}

#[test]
fn the_group_can_be_chosen() {
    if let Some(answer) =
        as_root(|| format!("{} {}", dropped("nobody", Some("daemon")), privileges()))
    {
        assert_eq!(answer, format!("65534 1 {}", nothing_left(NOBODY, 1, " 1")));
    }
}

#[test]
fn wrong_names_change_nothing() {
    let before = as_root(privileges);
    for (user, group) in [
        ("no-such-user", None),
        ("root", None),
        ("nobody", Some("no-such-group")),
        ("nobody", Some("root")),
    ] {
        let answer = as_root(|| {
            format!(
                "{} {}",
                dropped(user, group).starts_with("config=true "),
                privileges()
            )
        });
        assert_eq!(
            answer,
            before.clone().map(|before| format!("true {before}"))
        );
    }
}

#[test]
fn an_ordinary_user_keeps_identity_groups_and_a_bounding_set_out_of_reach() {
    let answer = as_root(|| {
        become_ordinary(&[]);
        // As after exec, which the change of user alone is not.
        prctl::set_dumpable(true).unwrap();
        let who = dropped("root", Some("whatever"));
        assert_eq!(prctl::get_dumpable(), Ok(false));
        format!("{who} {}", privileges())
    });
    if let Some(answer) = answer {
        let (before, bounding) = answer.split_once("|CapBnd ").unwrap();
        assert_eq!(
            before,
            "65534 65534 Uid 65534 65534 65534 65534|Gid 65534 65534 65534 65534|Groups 4 24|CapInh 0|CapPrm 0|CapEff 0"
        );
        assert!(
            !bounding.starts_with("0|") && bounding.ends_with("|CapAmb 0|NoNewPrivs 1"),
            "{bounding}"
        );
    }
}

#[test]
fn capabilities_of_an_ordinary_user_are_given_up() {
    let answer = as_root(|| {
        become_ordinary(&[
            Capability::CAP_NET_BIND_SERVICE,
            Capability::CAP_SETPCAP,
            Capability::CAP_SETUID,
        ]);
        let before = privileges();
        assert!(before.contains("CapAmb 0000000000000580"), "{before}");
        format!("{} {}", dropped("nobody", None), privileges())
    });
    if let Some(answer) = answer {
        assert_eq!(
            answer,
            format!("65534 65534 {}", nothing_left(NOBODY, NOBODY, " 4 24"))
        );
    }
}

#[test]
fn a_root_that_cannot_drop_says_which_right_it_lacks() {
    let lacking = |capability| {
        as_root(move || {
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::drop(None, set, capability).unwrap();
            }
            dropped("nobody", None)
        })
    };
    for (capability, message) in [
        (
            Capability::CAP_SETPCAP,
            "cannot empty the bounding set of capabilities; a root without CAP_SETPCAP",
        ),
        (
            Capability::CAP_SETGID,
            "cannot leave the supplementary groups; ",
        ),
        (Capability::CAP_SETUID, "cannot change the user; "),
    ] {
        if let Some(answer) = lacking(capability) {
            assert!(
                answer.starts_with(&format!("config=false {message}")),
                "{answer}"
            );
            assert!(answer.to_lowercase().contains("not permitted"), "{answer}");
        }
    }
}

#[test]
fn refuses_while_a_second_thread_would_keep_its_privileges() {
    let answer = as_root(|| {
        let before = privileges();
        let (stop, stopped) = mpsc::channel::<()>();
        let second = thread::spawn(move || stopped.recv());
        let answer = dropped("nobody", None);
        drop(stop);
        assert!(second.join().unwrap().is_err());
        assert_eq!(privileges(), before);
        answer
    });
    if let Some(answer) = answer {
        assert!(
            answer.starts_with(
                "config=false privileges are to be dropped while the process has 2 threads"
            ),
            "{answer}"
        );
    }
}

#[test]
fn the_service_manager_is_still_reached_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let answer = as_root(|| {
        let notifier = Notifier::to(OsStr::new(&path));
        let who = dropped("nobody", None);
        assert!(
            fs::metadata(&path).is_err(),
            "the directory is closed to nobody"
        );
        notifier.ready("without privileges");
        who
    });
    if let Some(answer) = answer {
        assert_eq!(answer, "65534 65534");
        let mut message = [0; 100];
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"READY=1\nSTATUS=without privileges\n");
    }
}
