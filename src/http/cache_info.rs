//! `/nix-cache-info`, which is also the first thing that a Nix command asks for.

use super::{
    Service,
    access::Client,
    answer::{Answer, content},
};
use crate::format::cache_info;

pub(super) fn answer(service: &Service, client: Client) -> Answer {
    if let Some(finder) = service.finder().filter(|_| client.is_loopback()) {
        finder.stir();
    }
    content(
        "text/x-nix-cache-info",
        cache_info::print(&service.config.store.dir, service.config.priority),
    )
}
