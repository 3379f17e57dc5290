//! A failure that ends the program, and its exit code.

use crate::{
    daemon::{self, SetupError},
    system::{privileges::PrivilegeError, sockets::SocketError},
};

/// Wrong arguments; the codes are those of sysexits.h.
pub const EX_USAGE: u8 = 64;
/// Something broke that should not.
pub const EX_SOFTWARE: u8 = 70;
pub(super) const EX_NOPERM: u8 = 77;
pub(super) const EX_CONFIG: u8 = 78;

/// Why the program ends, for a person, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What failed, with its causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// What no input of a user explains.
    pub fn bug(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: EX_SOFTWARE,
            error: error.into(),
        }
    }

    fn permission_or_config(is_permission: bool, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: if is_permission { EX_NOPERM } else { EX_CONFIG },
            error: error.into(),
        }
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self::permission_or_config(error.is_permission(), error)
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        Self::permission_or_config(daemon::is_permission(&error), error)
    }
}

impl From<PrivilegeError> for Failure {
    fn from(error: PrivilegeError) -> Self {
        Self::permission_or_config(!error.is_config(), error)
    }
}
