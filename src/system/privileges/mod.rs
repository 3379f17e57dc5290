//! Becoming nobody, for good, and making sure of it (capabilities(7), credentials(7)).
//!
//! Capabilities and user ids belong to threads: all of this happens while the process has one,
//! and every later thread starts with what is left then, which is nothing. Under systemd the
//! unit has done the work already and it is only verified.

mod proc_status;

use std::fmt;

use caps::{CapSet, Capability, errors::CapsError};
use nix::{
    errno::Errno,
    sys::prctl,
    unistd::{Gid, Group, Uid, User, getresgid, getresuid, setgroups, setresgid, setresuid},
};

pub use proc_status::StatusError;
use proc_status::{Capabilities, ProcStatus};

/// Whom the process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// All four user ids; never 0.
    pub uid: u32,
    /// All four group ids.
    pub gid: u32,
}

/// Why the daemon must not go on.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A bug: the drop would not reach the other threads.
    #[error(
        "privileges are to be dropped while the process has {threads} threads; they would keep theirs"
    )]
    Threads {
        /// How many.
        threads: u32,
    },
    /// `user` names nobody.
    #[error(
        "user = {name:?}: there is no such user; right would be one of /etc/passwd without privileges, such as \"nobody\""
    )]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// `group` names nothing.
    #[error(
        "group = {name:?}: there is no such group; right would be one of /etc/group, or no such key"
    )]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// `user` is root.
    #[error(
        "user = {name:?}: that is root; right would be a user without privileges, such as \"nobody\""
    )]
    RootUser {
        /// The name.
        name: String,
    },
    /// The group is root's.
    #[error(
        "group {name:?} is root's; right would be a group without privileges, such as \"nogroup\""
    )]
    RootGroup {
        /// The group's name, or the user's whose own it is.
        name: String,
    },
    /// The user database cannot be read.
    #[error("cannot look up {name:?}")]
    LookUp {
        /// User or group.
        name: String,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// The kernel refused a step.
    #[error(
        "cannot {step}; a root without that right (in a container, say) should start peerix as the user it is to be"
    )]
    Step {
        /// What was attempted.
        step: &'static str,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// The kernel refused to give up a set of capabilities.
    #[error(
        "cannot empty the {set} set of capabilities; a root without CAP_SETPCAP (in a container, say) should start peerix as the user it is to be"
    )]
    Capabilities {
        /// The set.
        set: &'static str,
        /// The kernel's reason.
        #[source]
        source: CapsError,
    },
    /// What is left cannot be seen.
    #[error("cannot verify that privileges are gone")]
    Status(#[source] StatusError),
    /// Something is left.
    #[error("privileges were dropped, but there is still {0}")]
    Left(Leftover),
}

impl PrivilegeError {
    /// Whether `user` or `group` is wrong, rather than the rights of the process.
    pub fn is_config(&self) -> bool {
        matches!(
            self,
            Self::UnknownUser { .. }
                | Self::UnknownGroup { .. }
                | Self::RootUser { .. }
                | Self::RootGroup { .. }
        )
    }
}

/// A privilege that was not to be left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// User ids: real, effective, saved, of the file system.
    UserIds([u32; 4]),
    /// Group ids, likewise.
    GroupIds([u32; 4]),
    /// Supplementary groups.
    Groups(Vec<u32>),
    /// A set of capabilities, as the kernel's bit mask.
    Capabilities(&'static str, u64),
    /// Programs that are executed can gain privileges.
    NewPrivileges,
    /// The memory can be dumped to a file or read by a debugger of the same user.
    Dumpable,
    /// The way back to root is open.
    WayBack,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UserIds(ids) => write!(f, "one of the user ids {ids:?}"),
            Self::GroupIds(ids) => write!(f, "one of the group ids {ids:?}"),
            Self::Groups(ids) => write!(f, "membership of the groups {ids:?}"),
            Self::Capabilities(set, mask) => write!(f, "the {set} set of capabilities {mask:#x}"),
            Self::NewPrivileges => f.write_str("a way to gain privileges by executing a program"),
            Self::Dumpable => f.write_str("a way to dump the memory"),
            Self::WayBack => f.write_str("the way back to root"),
        }
    }
}

/// As root, becomes `user` and `group` (the user's own if `None`) without any capability; as
/// anybody else, gives up whatever capabilities there are. Then verifies from /proc what is left.
///
/// The bounding set is emptied only where that is allowed (`CAP_SETPCAP`): as root, and by
/// systemd's `CapabilityBoundingSet=`. The set of an ordinary user's shell is full and stays so,
/// but it bounds only what executing a privileged program could add, which no_new_privs forbids.
pub fn drop_and_verify(user: &str, group: Option<&str>) -> Result<Identity, PrivilegeError> {
    let threads = status()?.threads;
    if threads != 1 {
        return Err(PrivilegeError::Threads { threads });
    }
    let users = getresuid().map_err(step("read the user ids"))?;
    let is_root = [users.real, users.effective, users.saved].contains(&Uid::from_raw(0));
    let identity = if is_root {
        let identity = look_up(user, group)?;
        become_user(identity)?;
        identity
    } else {
        let groups = getresgid().map_err(step("read the group ids"))?;
        Identity {
            uid: users.effective.as_raw(),
            gid: groups.effective.as_raw(),
        }
    };
    empty_own_sets()?;
    prctl::set_no_new_privs().map_err(step("set no_new_privs"))?;
    // A core dump, or a debugger of the same user (every daemon that runs as nobody), would
    // read the signing key from our memory.
    prctl::set_dumpable(false).map_err(step("forbid core dumps"))?;
    verify(identity, is_root)?;
    Ok(identity)
}

fn step(step: &'static str) -> impl Fn(Errno) -> PrivilegeError {
    move |source| PrivilegeError::Step { step, source }
}

fn status() -> Result<ProcStatus, PrivilegeError> {
    ProcStatus::of_this_thread().map_err(PrivilegeError::Status)
}

fn look_up(user: &str, group: Option<&str>) -> Result<Identity, PrivilegeError> {
    let failed = |name: &str, source| PrivilegeError::LookUp {
        name: name.into(),
        source,
    };
    let entry = User::from_name(user).map_err(|source| failed(user, source))?;
    let entry = entry.ok_or_else(|| PrivilegeError::UnknownUser { name: user.into() })?;
    if entry.uid.is_root() {
        return Err(PrivilegeError::RootUser { name: user.into() });
    }
    let gid = match group {
        None => entry.gid,
        Some(name) => {
            let group = Group::from_name(name).map_err(|source| failed(name, source))?;
            group
                .ok_or_else(|| PrivilegeError::UnknownGroup { name: name.into() })?
                .gid
        }
    };
    if gid == Gid::from_raw(0) {
        return Err(PrivilegeError::RootGroup {
            name: group.unwrap_or(user).into(),
        });
    }
    Ok(Identity {
        uid: entry.uid.as_raw(),
        gid: gid.as_raw(),
    })
}

/// Each step while the capability that it needs is still there.
fn become_user(identity: Identity) -> Result<(), PrivilegeError> {
    empty_bounding_set().map_err(|source| PrivilegeError::Capabilities {
        set: "bounding",
        source,
    })?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&[gid]).map_err(step("leave the supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(step("change the group"))?;
    setresuid(uid, uid, uid).map_err(step("change the user"))
}

fn empty_bounding_set() -> Result<(), CapsError> {
    for capability in caps::read(None, CapSet::Bounding)? {
        caps::drop(None, CapSet::Bounding, capability)?;
    }
    Ok(())
}

/// What this thread holds itself. Sets that are empty are left alone: under systemd's system
/// call filter even an empty capset(2) is refused.
fn empty_own_sets() -> Result<(), PrivilegeError> {
    let held = status()?.capabilities;
    let may_drop = held.effective & Capability::CAP_SETPCAP.bitmask() != 0;
    if held.bounding != 0 && may_drop {
        empty_bounding_set().map_err(|source| PrivilegeError::Capabilities {
            set: "bounding",
            source,
        })?;
    }
    // Permitted last: without it nothing can be changed. Emptying it empties the effective set.
    for (set, kind, mask) in [
        ("ambient", CapSet::Ambient, held.ambient),
        ("inheritable", CapSet::Inheritable, held.inheritable),
        ("effective", CapSet::Effective, held.effective),
        ("permitted", CapSet::Permitted, held.permitted),
    ] {
        if mask != 0 {
            caps::clear(None, kind)
                .map_err(|source| PrivilegeError::Capabilities { set, source })?;
        }
    }
    Ok(())
}

fn verify(identity: Identity, was_root: bool) -> Result<(), PrivilegeError> {
    let left = leftover(&status()?, identity, was_root)
        .or_else(|| (prctl::get_dumpable() != Ok(false)).then_some(Leftover::Dumpable))
        .or_else(|| way_back_is_open().then_some(Leftover::WayBack));
    left.map_or(Ok(()), |left| Err(PrivilegeError::Left(left)))
}

/// The first privilege that /proc shows and that should not be there.
fn leftover(status: &ProcStatus, identity: Identity, was_root: bool) -> Option<Leftover> {
    let Capabilities {
        inheritable,
        permitted,
        effective,
        bounding,
        ambient,
    } = status.capabilities;
    // A kernel may know capabilities that this program does not; see drop_and_verify for
    // why what is left of the bounding set is out of reach.
    let bounding = if was_root {
        bounding & known_capabilities()
    } else {
        0
    };
    let sets = [
        ("effective", effective),
        ("permitted", permitted),
        ("inheritable", inheritable),
        ("ambient", ambient),
        ("bounding", bounding),
    ];
    if status
        .uids
        .iter()
        .any(|uid| *uid == 0 || *uid != identity.uid)
    {
        return Some(Leftover::UserIds(status.uids));
    }
    if status
        .gids
        .iter()
        .any(|gid| *gid != identity.gid || (was_root && *gid == 0))
    {
        return Some(Leftover::GroupIds(status.gids));
    }
    if was_root && status.groups != [identity.gid] {
        return Some(Leftover::Groups(status.groups.clone()));
    }
    if let Some((set, mask)) = sets.into_iter().find(|(_, mask)| *mask != 0) {
        return Some(Leftover::Capabilities(set, mask));
    }
    (!status.no_new_privileges).then_some(Leftover::NewPrivileges)
}

fn known_capabilities() -> u64 {
    caps::all()
        .iter()
        .fold(0, |mask, capability| mask | capability.bitmask())
}

fn way_back_is_open() -> bool {
    let root = Uid::from_raw(0);
    setresuid(root, root, root).is_ok() || setgroups(&[Gid::from_raw(0)]).is_ok()
}

#[cfg(test)]
mod tests;
