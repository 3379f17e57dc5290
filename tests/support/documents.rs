//! The examples of README.md and docs/: what stands in fenced blocks with a language.

use std::{fs, path::Path};

/// A fenced block.
pub(crate) struct Block {
    /// File and line, for messages.
    pub(crate) place: String,
    pub(crate) text: String,
}

/// All blocks of this language, file by file.
pub(crate) fn blocks(language: &str) -> Vec<Block> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("docs");
    files.extend(docs.map(|entry| entry.expect("an entry").path()));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.sort();

    let mut found = Vec::new();
    for file in files {
        let name = file
            .strip_prefix(root)
            .expect("below the root")
            .display()
            .to_string();
        let text = fs::read_to_string(&file).expect("a document");
        let mut open: Option<(String, Block)> = None;
        for (index, line) in text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(language)) => {
                    let place = format!("{name}:{}", index + 1);
                    open = Some((
                        language.to_owned(),
                        Block {
                            place,
                            text: String::new(),
                        },
                    ));
                }
                (Some(_), Some(_)) => {
                    let (of, block) = open.take().expect("it is open");
                    if of == language {
                        found.push(block);
                    }
                }
                (Some((_, block)), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{name}: a block has no end");
    }
    found
}
