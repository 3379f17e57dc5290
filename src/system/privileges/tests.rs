use super::*;

const NOBODY: Identity = Identity {
    uid: 65_534,
    gid: 65_534,
};

fn clean() -> ProcStatus {
    ProcStatus {
        uids: [65_534; 4],
        gids: [65_534; 4],
        groups: vec![65_534],
        threads: 1,
        capabilities: Capabilities {
            inheritable: 0,
            permitted: 0,
            effective: 0,
            bounding: 0,
            ambient: 0,
        },
        no_new_privileges: true,
    }
}

const STATUS: &str = "Name:\tpeerix\nUmask:\t0022\nUid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\nGroups:\t8 9 \nThreads:\t12\n\
    CapInh:\t0000000000000001\nCapPrm:\t0000000000000002\nCapEff:\t0000000000000004\nCapBnd:\t000001ffffffffff\n\
    CapAmb:\t0000000000000008\nNoNewPrivs:\t0\n";

#[test]
fn the_kernels_lines_are_read() {
    let status = ProcStatus::parse(STATUS).unwrap();
    let capabilities = Capabilities {
        inheritable: 1,
        permitted: 2,
        effective: 4,
        bounding: 0x1ff_ffff_ffff,
        ambient: 8,
    };
    let expected = ProcStatus {
        uids: [0, 1, 2, 3],
        gids: [4, 5, 6, 7],
        groups: vec![8, 9],
        threads: 12,
        capabilities,
        no_new_privileges: false,
    };
    assert_eq!(status, expected);
    assert_eq!(
        ProcStatus::parse(&STATUS.replace("8 9 ", ""))
            .unwrap()
            .groups,
        [0_u32; 0]
    );
    assert!(
        ProcStatus::of_this_thread().unwrap().threads > 1,
        "the test harness has threads"
    );
}

#[test]
fn a_line_that_is_missing_or_odd_is_no_all_clear() {
    for name in [
        "Uid",
        "Gid",
        "Groups",
        "Threads",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
    ] {
        let without: String = STATUS
            .lines()
            .filter(|line| !line.starts_with(name))
            .map(|line| format!("{line}\n"))
            .collect();
        let odd = STATUS.replace(&format!("{name}:\t"), &format!("{name}:\tx"));
        for text in [without, odd] {
            assert!(
                matches!(ProcStatus::parse(&text), Err(StatusError::Field(field)) if field == name),
                "{text}"
            );
        }
    }
    assert!(ProcStatus::parse(&STATUS.replace("0\t1\t2\t3", "0\t1\t2")).is_err());
}

#[test]
fn each_privilege_that_is_left_is_named() {
    assert_eq!(leftover(&clean(), NOBODY, true), None);
    type Add = fn(&mut ProcStatus);
    let cases: [(Add, Leftover); 9] = [
        (
            |status| status.uids[2] = 0,
            Leftover::UserIds([65_534, 65_534, 0, 65_534]),
        ),
        (
            |status| status.uids[3] = 1,
            Leftover::UserIds([65_534, 65_534, 65_534, 1]),
        ),
        (
            |status| status.gids[2] = 0,
            Leftover::GroupIds([65_534, 65_534, 0, 65_534]),
        ),
        (
            |status| status.groups = vec![0, 65_534],
            Leftover::Groups(vec![0, 65_534]),
        ),
        (
            |status| status.capabilities.effective = 1,
            Leftover::Capabilities("effective", 1),
        ),
        (
            |status| status.capabilities.inheritable = 2,
            Leftover::Capabilities("inheritable", 2),
        ),
        (
            |status| status.capabilities.ambient = 4,
            Leftover::Capabilities("ambient", 4),
        ),
        (
            |status| status.capabilities.bounding = 1 << 40,
            Leftover::Capabilities("bounding", 1 << 40),
        ),
        (
            |status| status.no_new_privileges = false,
            Leftover::NewPrivileges,
        ),
    ];
    for (add, left) in cases {
        let mut status = clean();
        add(&mut status);
        assert_eq!(leftover(&status, NOBODY, true), Some(left));
    }
}

#[test]
fn an_ordinary_users_bounding_set_and_groups_are_no_privilege() {
    let mut status = clean();
    status.capabilities.bounding = u64::MAX;
    status.groups = vec![4, 24, 100];
    assert_eq!(leftover(&status, NOBODY, false), None);
    status.capabilities.permitted = 1;
    assert_eq!(
        leftover(&status, NOBODY, false),
        Some(Leftover::Capabilities("permitted", 1))
    );
}

#[test]
fn a_capability_from_the_future_is_no_reason_to_refuse() {
    let mut status = clean();
    status.capabilities.bounding = 1 << 63;
    assert_eq!(leftover(&status, NOBODY, true), None);
    status.capabilities.permitted = 1 << 63;
    assert_eq!(
        leftover(&status, NOBODY, true),
        Some(Leftover::Capabilities("permitted", 1 << 63))
    );
}

#[test]
fn refuses_while_there_are_threads() {
    assert!(
        matches!(drop_and_verify("nobody", None), Err(PrivilegeError::Threads { threads }) if threads > 1)
    );
}

#[test]
fn names_are_looked_up_before_anything_is_changed() {
    assert_eq!(look_up("nobody", None).unwrap().uid, 65_534);
    let cases = [
        (
            look_up("no-such-user", None),
            "user = \"no-such-user\": there is no such user",
        ),
        (look_up("root", None), "user = \"root\": that is root"),
        (
            look_up("nobody", Some("no-such-group")),
            "group = \"no-such-group\": there is no such group",
        ),
        (look_up("nobody", Some("root")), "group \"root\" is root's"),
    ];
    for (result, message) in cases {
        let error = result.unwrap_err();
        assert!(error.is_config());
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(error.to_string().contains("right would be"), "{error}");
    }
}
