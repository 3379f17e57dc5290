//! How many descriptors the process may have: getrlimit(2).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::journal::chain;

/// Raises the soft limit to the hard one. A shell's 1,024 are fewer than the connections and
/// files of a busy daemon; systemd sets both (`LimitNOFILE=`). Without the right to do so the
/// daemon runs with what it has: connections that find no descriptor wait.
pub fn raise_limit() {
    let raised = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    };
    if let Err(errno) = raised {
        log::debug!("the limit of open files stays as it is: {}", chain(&errno));
    }
}
