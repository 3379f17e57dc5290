//! Text that may be anybody's, on one line that means what it shows.

use std::{
    error::Error,
    fmt::{self, Display, Write},
};

/// `value` with every character escaped that would break the line, move the cursor or turn
/// the direction of writing: nobody can write a line of a log but us.
pub fn single_line(value: &(impl Display + ?Sized)) -> impl Display {
    struct SingleLine<'a, T: ?Sized>(&'a T);
    impl<T: Display + ?Sized> Display for SingleLine<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(Escaping(f), "{}", self.0)
        }
    }
    SingleLine(value)
}

/// The error and all its causes: `cannot open /a/b: No such file or directory (os error 2)`.
/// A cause that its effect's message already ends with is not said twice.
pub fn chain(error: &dyn Error) -> impl Display {
    struct Chain<'a>(&'a dyn Error);
    impl Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut said = self.0.to_string();
            write!(Escaping(f), "{said}")?;
            let mut cause = self.0.source();
            while let Some(error) = cause {
                let text = error.to_string();
                if !said.ends_with(&text) {
                    write!(Escaping(f), ": {text}")?;
                }
                said = text;
                cause = error.source();
            }
            Ok(())
        }
    }
    Chain(error)
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut clean_from = 0;
        for (at, character) in text
            .char_indices()
            .filter(|(_, character)| misleads(*character))
        {
            self.0.write_str(&text[clean_from..at])?;
            write!(self.0, "{}", character.escape_default())?;
            clean_from = at + character.len_utf8();
        }
        self.0.write_str(&text[clean_from..])
    }
}

fn misleads(character: char) -> bool {
    character.is_control()
        // Line and paragraph separator; marks, embeddings, overrides and isolates of direction.
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open {0}")]
        Plain(&'static str, #[source] io::Error),
        #[error("cannot open: {0}")]
        Repeating(#[source] io::Error),
        #[error(transparent)]
        Transparent(#[from] io::Error),
    }

    #[test]
    fn nothing_can_break_out_of_the_line() {
        for (text, shown) in [
            ("plain, with ümlaut and 日本", "plain, with ümlaut and 日本"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[31mred\u{7f}\u{9b}", "\\u{1b}[31mred\\u{7f}\\u{9b}"),
            ("\u{202e}txt.exe\u{2028}", "\\u{202e}txt.exe\\u{2028}"),
            ("\0", "\\u{0}"),
        ] {
            assert_eq!(single_line(text).to_string(), shown);
        }
    }

    #[test]
    fn a_chain_is_said_once_and_whole() {
        let cause = || io::Error::other("no\nsuch file");
        assert_eq!(
            chain(&Outer::Plain("/a\n", cause())).to_string(),
            "cannot open /a\\n: no\\nsuch file"
        );
        assert_eq!(
            chain(&Outer::Repeating(cause())).to_string(),
            "cannot open: no\\nsuch file"
        );
        assert_eq!(
            chain(&Outer::Transparent(cause())).to_string(),
            "no\\nsuch file"
        );
        let deep = io::Error::other(Outer::Plain(
            "/b",
            io::Error::other(Outer::Plain("/c", cause())),
        ));
        assert_eq!(
            chain(&deep).to_string(),
            "cannot open /b: cannot open /c: no\\nsuch file"
        );
    }
}
