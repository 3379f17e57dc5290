//! nix.conf: directives, and the settings that decide whom this machine trusts.
//!
//! Spec: nix.conf(5), and `AbstractConfig::applyConfig` in `libutil/config.cc` of Nix. Reading
//! the files that `include` names is the caller's. Errors never repeat a value: a nix.conf may
//! hold access tokens.

use super::{PublicKey, signature::KeyError};

/// The key of cache.nixos.org, which Nix trusts when nothing is set.
pub const CACHE_NIXOS_ORG: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// One line of a nix.conf that does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directive<'a> {
    /// `NAME = VALUE` (comments and surrounding blanks removed).
    Setting {
        /// 1-based line number.
        line: usize,
        /// The setting's name.
        name: &'a str,
        /// Its value, words separated by single blanks or as written.
        value: &'a str,
    },
    /// `include FILE` or `!include FILE`.
    Include {
        /// 1-based line number.
        line: usize,
        /// The file, relative to the including one.
        file: &'a str,
        /// `!include`: no error when it cannot be read.
        optional: bool,
    },
}

/// Why a nix.conf cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NixConfError {
    /// The line is neither a setting nor an include.
    #[error(
        "line {line}: expected `NAME = VALUE` (blanks around the =), `include FILE` or `!include FILE`"
    )]
    Syntax {
        /// 1-based line number.
        line: usize,
    },
    /// A word of a list of public keys is none.
    #[error("line {line}: {name} must be public keys of the form NAME:BASE64, separated by blanks")]
    Key {
        /// 1-based line number.
        line: usize,
        /// The setting, without `extra-`.
        name: &'static str,
        /// What is wrong with the key.
        #[source]
        source: KeyError,
    },
    /// A switch is neither on nor off.
    #[error("line {line}: {name} must be true or false")]
    Bool {
        /// 1-based line number.
        line: usize,
        /// The setting.
        name: &'static str,
    },
}

/// Splits a file into its directives, in order.
pub fn parse(text: &str) -> Result<Vec<Directive<'_>>, NixConfError> {
    text.split('\n')
        .enumerate()
        .filter_map(|(index, text)| parse_line(index + 1, text).transpose())
        .collect()
}

fn parse_line(line: usize, text: &str) -> Result<Option<Directive<'_>>, NixConfError> {
    let text = text.split('#').next().unwrap_or_default();
    let (first, rest) = split_word(text);
    let (second, value) = split_word(rest);
    match (first, second) {
        ("", _) => Ok(None),
        ("include" | "!include", file) if !file.is_empty() && value.is_empty() => {
            Ok(Some(Directive::Include {
                line,
                file,
                optional: first == "!include",
            }))
        }
        ("include" | "!include", _) => Err(NixConfError::Syntax { line }),
        (name, "=") => Ok(Some(Directive::Setting { line, name, value })),
        _ => Err(NixConfError::Syntax { line }),
    }
}

/// The first word, and what follows it without surrounding blanks.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_matches(is_blank);
    match text.split_once(is_blank) {
        Some((word, rest)) => (word, rest.trim_start_matches(is_blank)),
        None => (text, ""),
    }
}

/// What separates words; a carriage return is a blank to Nix, other white space is not.
const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r')
}

/// The value of a setting that is on or off; `None` if it is neither.
pub fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "true" | "yes" | "1" => Some(true),
        "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// The trust settings of Nix, folded from directives in the order Nix reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixTrust {
    /// `trusted-public-keys` and what `extra-trusted-public-keys` appended to it, without repetitions.
    pub public_keys: Vec<PublicKey>,
    /// `require-sigs`.
    pub require_sigs: bool,
}

impl Default for NixTrust {
    /// What Nix uses when nothing is set: the key of cache.nixos.org, signatures required.
    #[expect(clippy::expect_used, reason = "a constant, and parsed in a test")]
    fn default() -> Self {
        let key =
            PublicKey::parse(CACHE_NIXOS_ORG).expect("the key of cache.nixos.org is well-formed");
        Self {
            public_keys: vec![key],
            require_sigs: true,
        }
    }
}

impl NixTrust {
    /// Applies one setting; settings that are not about trust are ignored.
    ///
    /// As in Nix the order counts: `trusted-public-keys` replaces all before it, also what an
    /// earlier `extra-trusted-public-keys` added. A setting that fails changes nothing.
    pub fn apply(&mut self, line: usize, name: &str, value: &str) -> Result<(), NixConfError> {
        let (name, append) = match name.strip_prefix("extra-") {
            Some(name) => (name, true),
            None => (name, false),
        };
        match name {
            "trusted-public-keys" => self.apply_keys(line, "trusted-public-keys", value, append),
            "binary-cache-public-keys" => {
                self.apply_keys(line, "binary-cache-public-keys", value, append)
            }
            "require-sigs" if !append => {
                self.require_sigs = parse_switch(value).ok_or(NixConfError::Bool {
                    line,
                    name: "require-sigs",
                })?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn apply_keys(
        &mut self,
        line: usize,
        name: &'static str,
        value: &str,
        append: bool,
    ) -> Result<(), NixConfError> {
        let mut keys = if append {
            self.public_keys.clone()
        } else {
            Vec::new()
        };
        for word in value.split(is_blank).filter(|word| !word.is_empty()) {
            let key = PublicKey::parse(word).map_err(|source| NixConfError::Key {
                line,
                name,
                source,
            })?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        self.public_keys = keys;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY_A: &str = "a-1:2EGDCPEm15zRnXJYeu3o5z8EWZWkTQTykbkIsaJxdOs=";
    const KEY_B: &str = "b-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    fn trust(text: &str) -> Result<NixTrust, NixConfError> {
        let mut trust = NixTrust::default();
        for directive in parse(text)? {
            if let Directive::Setting { line, name, value } = directive {
                trust.apply(line, name, value)?;
            }
        }
        Ok(trust)
    }

    fn names(trust: &NixTrust) -> Vec<&str> {
        trust.public_keys.iter().map(PublicKey::name).collect()
    }

    #[test]
    fn splits_lines_as_nix_does() {
        let text = "# comment\n\n  cores = 4 # four\r\nsubstituters =  https://a\t https://b \n\
                    empty =\ninclude more.conf\n\t!include  /etc/secret.conf#x\nodd = include x";
        assert_eq!(
            parse(text).unwrap(),
            [
                Directive::Setting {
                    line: 3,
                    name: "cores",
                    value: "4"
                },
                Directive::Setting {
                    line: 4,
                    name: "substituters",
                    value: "https://a\t https://b"
                },
                Directive::Setting {
                    line: 5,
                    name: "empty",
                    value: ""
                },
                Directive::Include {
                    line: 6,
                    file: "more.conf",
                    optional: false
                },
                Directive::Include {
                    line: 7,
                    file: "/etc/secret.conf",
                    optional: true
                },
                Directive::Setting {
                    line: 8,
                    name: "odd",
                    value: "include x"
                },
            ]
        );
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_line_that_is_neither_is_an_error_with_its_number_and_without_its_text() {
        for bad in [
            "cores=4",
            "cores",
            "cores 4",
            "include",
            "include a b",
            "!include",
            "access-tokens=github.com=tok",
        ] {
            let error = parse(&format!("cores = 1\n\n{bad}\n")).unwrap_err();
            assert_eq!(error, NixConfError::Syntax { line: 3 }, "{bad}");
            assert!(!error.to_string().contains("tok"));
        }
    }

    #[test]
    fn the_default_is_the_key_of_the_official_cache() {
        let trust = trust("cores = 4").unwrap();
        assert_eq!(trust, NixTrust::default());
        assert_eq!(trust.public_keys[0].to_string(), CACHE_NIXOS_ORG);
        assert!(trust.require_sigs);
    }

    #[test]
    fn keys_replace_and_extra_keys_append_in_the_order_of_the_file() {
        let read = |text: &str| names(&trust(text).unwrap()).join(" ");
        assert_eq!(
            read(&format!("trusted-public-keys = {KEY_A}  {KEY_B}")),
            "a-1 b-1"
        );
        assert_eq!(
            read(&format!("extra-trusted-public-keys = {KEY_A}")),
            "cache.nixos.org-1 a-1"
        );
        assert_eq!(read(&format!("binary-cache-public-keys = {KEY_A}")), "a-1");
        assert_eq!(
            read(&format!(
                "trusted-public-keys = {KEY_A}\nextra-binary-cache-public-keys = {KEY_B} {KEY_A}"
            )),
            "a-1 b-1"
        );
        assert_eq!(
            read(&format!(
                "extra-trusted-public-keys = {KEY_B}\ntrusted-public-keys = {KEY_A}"
            )),
            "a-1"
        );
        assert_eq!(read("trusted-public-keys ="), "");
    }

    #[test]
    fn require_sigs_is_a_switch() {
        for (value, expected) in [
            ("true", true),
            ("yes", true),
            ("1", true),
            ("false", false),
            ("no", false),
        ] {
            assert_eq!(
                trust(&format!("require-sigs = {value}"))
                    .unwrap()
                    .require_sigs,
                expected
            );
        }
        assert!(
            trust("require-sigs = false\nrequire-sigs = true")
                .unwrap()
                .require_sigs
        );
        for bad in ["maybe", "", "True"] {
            let error = trust(&format!("\nrequire-sigs = {bad}")).unwrap_err();
            assert_eq!(
                error,
                NixConfError::Bool {
                    line: 2,
                    name: "require-sigs"
                }
            );
            assert_eq!(
                error.to_string(),
                "line 2: require-sigs must be true or false"
            );
        }
    }

    #[test]
    fn a_bad_key_is_named_by_line_and_changes_nothing() {
        let mut trust = NixTrust::default();
        let error = trust
            .apply(7, "trusted-public-keys", &format!("{KEY_A} secretword"))
            .unwrap_err();
        let expected = NixConfError::Key {
            line: 7,
            name: "trusted-public-keys",
            source: KeyError::NoColon,
        };
        assert_eq!(error, expected);
        assert!(!error.to_string().contains("secretword"));
        assert_eq!(trust, NixTrust::default());
    }

    proptest! {
        #[test]
        fn never_panics(text: String, lines in "([a-z!#= \t\r\n-]{0,12}(trusted-public-keys|include|require-sigs)?){0,8}") {
            trust(&text).ok();
            trust(&lines).ok();
        }

        #[test]
        fn parses_what_is_printed(settings in prop::collection::vec(("[a-z][a-z-]{0,20}", "([!-\"$-~]{1,9}( [!-\"$-~]{1,9}){0,3})?"), 0..8)) {
            prop_assume!(settings.iter().all(|(name, _)| name != "include"));
            let text: String = settings.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
            let expected: Vec<_> = settings.iter().enumerate()
                .map(|(index, (name, value))| Directive::Setting { line: index + 1, name, value })
                .collect();
            prop_assert_eq!(parse(&text), Ok(expected));
        }
    }
}
