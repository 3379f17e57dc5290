//! Settings for machines as people have them.

/// A kind of machine, and its file.
pub(crate) struct Setup {
    pub(crate) title: &'static str,
    pub(crate) before: &'static [&'static str],
    /// What is typed first.
    pub(crate) commands: &'static str,
    pub(crate) file: &'static str,
    pub(crate) after: &'static [&'static str],
}

pub(crate) const SETUPS: [Setup; 5] = [
    Setup {
        title: "A laptop on strange networks",
        before: &[
            "It gives nothing, and its questions are not broadcast: only the machines named here are \
             asked, at home.",
        ],
        commands: "",
        file: "\
[share]
paths = \"none\"

[discovery]
broadcast = false
peers = [\"192.168.178.20\", \"192.168.178.21\"]
",
        after: &[
            "On another network that has the same addresses, whoever has them is asked as well. What \
             they answer is verified as always. With `allowed-networks = [\"127.0.0.0/8\", \"::1/128\"]` \
             strangers get no answer at all. Do not stop the socket for that: a Nix that has used \
             the gateway in the last week fails at a closed port, unless it has `fallback = true`.",
        ],
    },
    Setup {
        title: "A server that shares its own builds",
        before: &["It needs a signing key, from which `share.paths = \"built\"` follows:"],
        commands: "\
sudo install -d -m 700 /etc/credstore
sudo nix-store --generate-binary-cache-key myhost-1 /etc/credstore/peerix.signing-key myhost-1.pub
sudo systemctl restart peerix.service
",
        file: "\
[share]
# These names also stay here, although they were built here.
exclude = [\"*.drv\", \"nixos-system-*\", \"etc\", \"etc-*\", \"*secret*\", \"internal-*\"]

[limits]
upload = \"50MiB\"
",
        after: &[
            "The other machines need the line of `myhost-1.pub` in `extra-trusted-public-keys` of their \
             `nix.conf`. A list replaces the default one, so the names of the default that are to stay \
             are repeated.",
        ],
    },
    Setup {
        title: "A company's private cache",
        before: &[
            "What a private cache has signed is not shared unless its key is in `share.keys`, also where \
             Nix trusts that key. A bare name stands for the trusted key of that name. The list replaces \
             the default one, so the key of cache.nixos.org is repeated.",
        ],
        commands: "",
        file: "\
[share]
keys = [\"cache.nixos.org-1\", \"cache.example.com-1\"]
",
        after: &[
            "Every machine in `allowed-networks` may then have these paths, on strange networks too.",
        ],
    },
    Setup {
        title: "Fixed peers over a VPN",
        before: &[
            "Most VPNs have no broadcast, so each machine names those that it asks. `timeout` must be \
             longer than a round trip. The addresses must be in `allowed-networks`; private ones are \
             by default.",
        ],
        commands: "",
        file: "\
[discovery]
peers = [\"10.8.0.2\", \"[fd00:8::3]:12304\"]
timeout = \"200ms\"
wake-timeout = \"1s\"
",
        after: &[],
    },
    Setup {
        title: "One network, and no other",
        before: &[
            "Of several networks that a machine is on, it answers and asks on one. `interfaces` decides \
                  where questions are broadcast, `allowed-networks` who gets an answer.",
        ],
        commands: "",
        file: "\
allowed-networks = [\"127.0.0.0/8\", \"::1/128\", \"192.168.178.0/24\"]

[interfaces]
include = [\"enp3s0\"]
",
        after: &[],
    },
];
