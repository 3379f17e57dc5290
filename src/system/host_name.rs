//! What this host is called.

use nix::unistd::gethostname;

/// The kernel's host name; `None` if it has none that is text.
pub fn host_name() -> Option<String> {
    gethostname().ok()?.into_string().ok()
}
