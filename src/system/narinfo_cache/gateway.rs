//! The names under which Nix knows a gateway.

use std::fmt;

/// A gateway on this machine, by its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    port: u16,
}

impl Gateway {
    /// The gateway at a TCP port of loopback; no gateway is at port 0.
    pub const fn at(port: u16) -> Option<Self> {
        match port {
            0 => None,
            port => Some(Self { port }),
        }
    }

    /// Its port.
    pub const fn port(self) -> u16 {
        self.port
    }

    /// Whether a substituter of this URL is the gateway: `/local` below it, for one, is not.
    pub fn is_at(self, url: &str) -> bool {
        let port = self.port;
        let url = url.trim_end_matches('/');
        ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|host| url == format!("http://{host}:{port}"))
    }
}

impl fmt::Display for Gateway {
    /// Its usual URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://127.0.0.1:{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_known_by_its_loopback_names_alone() {
        let gateway = Gateway::at(12_304).unwrap();
        for url in [
            "http://127.0.0.1:12304",
            "http://127.0.0.1:12304/",
            "http://127.0.0.1:12304///",
            "http://localhost:12304",
            "http://[::1]:12304/",
        ] {
            assert!(gateway.is_at(url), "{url}");
        }
        for url in [
            "http://127.0.0.1:12304/local",
            "http://127.0.0.1:12304//local/",
            "http://127.0.0.1:123040",
            "http://127.0.0.1:1230",
            "http://127.0.0.1",
            "http://127.0.0.12:12304",
            "http://localhost.example:12304",
            "http://192.168.1.5:12304",
            "https://127.0.0.1:12304",
            "http://u@127.0.0.1:12304",
            "http://127.0.0.1:12304?priority=1",
            " http://127.0.0.1:12304",
            "",
        ] {
            assert!(!gateway.is_at(url), "{url}");
        }
        assert_eq!(gateway.to_string(), "http://127.0.0.1:12304");
        assert_eq!(Gateway::at(0), None);
    }
}
