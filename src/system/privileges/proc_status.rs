//! /proc/thread-self/status: what the kernel says that a thread may do (proc_pid_status(5)).

use std::{fs, io};

const PATH: &str = "/proc/thread-self/status";

/// Why the status says nothing.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// /proc is not there or not readable.
    #[error("cannot read {PATH}")]
    Read(#[source] io::Error),
    /// A line is missing or is not what the kernel writes.
    #[error("{PATH} has no well-formed line {0}")]
    Field(&'static str),
}

/// The part of it that is about privileges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcStatus {
    /// Real, effective, saved, of the file system.
    pub(super) uids: [u32; 4],
    /// Likewise.
    pub(super) gids: [u32; 4],
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    /// Threads of the process.
    pub(super) threads: u32,
    /// The five sets.
    pub(super) capabilities: Capabilities,
    /// Executing a program adds no privilege.
    pub(super) no_new_privileges: bool,
}

/// Sets of capabilities, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) inheritable: u64,
    pub(super) permitted: u64,
    pub(super) effective: u64,
    pub(super) bounding: u64,
    pub(super) ambient: u64,
}

impl ProcStatus {
    pub(super) fn of_this_thread() -> Result<Self, StatusError> {
        let text = fs::read_to_string(PATH).map_err(StatusError::Read)?;
        Self::parse(&text)
    }

    pub(super) fn parse(text: &str) -> Result<Self, StatusError> {
        Ok(Self {
            uids: ids(text, "Uid")?,
            gids: ids(text, "Gid")?,
            groups: numbers(text, "Groups")?,
            threads: one(text, "Threads", 10)?,
            capabilities: Capabilities {
                inheritable: one(text, "CapInh", 16)?,
                permitted: one(text, "CapPrm", 16)?,
                effective: one(text, "CapEff", 16)?,
                bounding: one(text, "CapBnd", 16)?,
                ambient: one(text, "CapAmb", 16)?,
            },
            no_new_privileges: one::<u32>(text, "NoNewPrivs", 10)? == 1,
        })
    }
}

fn line<'a>(text: &'a str, name: &'static str) -> Result<&'a str, StatusError> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map(str::trim).ok_or(StatusError::Field(name))
}

fn numbers(text: &str, name: &'static str) -> Result<Vec<u32>, StatusError> {
    let words = line(text, name)?.split_ascii_whitespace();
    words
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| StatusError::Field(name))
}

fn ids(text: &str, name: &'static str) -> Result<[u32; 4], StatusError> {
    numbers(text, name)?
        .try_into()
        .map_err(|_| StatusError::Field(name))
}

fn one<T: TryFrom<u64>>(text: &str, name: &'static str, radix: u32) -> Result<T, StatusError> {
    let number =
        u64::from_str_radix(line(text, name)?, radix).map_err(|_| StatusError::Field(name))?;
    T::try_from(number).map_err(|_| StatusError::Field(name))
}
