//! peerix.toml(5): every setting, from the commented file that is shipped.

use crate::{
    page::{Block::Text, Page, Section},
    reference::{ABOUT, APPLYING, SYNTAX, mistakes, title},
    setups::SETUPS,
    shipped::{Comment, Key, tables},
};

/// The whole page.
pub(crate) fn page() -> String {
    let mut page = Page::new("PEERIX.TOML", "5", "File formats");
    page.write(&Section {
        title: "NAME",
        blocks: &[Text("peerix.toml - settings of peerix(8)")],
    });
    page.write(&Section {
        title: "SYNOPSIS",
        blocks: &[Text("{/etc/peerix/peerix.toml}")],
    });
    page.section("DESCRIPTION");
    for text in ABOUT {
        page.paragraph(text);
    }
    page.subsection("Values");
    for syntax in &SYNTAX {
        page.item(syntax.kind, syntax.text);
        let values: Vec<&str> = syntax.values().collect();
        page.continued(&format!("Examples: {}", values.join(", ")));
    }
    page.section("SETTINGS");
    for table in tables() {
        page.subsection(&title(&table));
        for key in &table.keys {
            page_key(&mut page, key);
        }
    }
    page.section("ERRORS");
    page.paragraph(
        "An error names the line or the key, and what would be right. What this program says of some \
         mistakes:",
    );
    for (text, said) in mistakes() {
        page.example(text);
        page.paragraph(&said);
    }
    page.section("APPLYING CHANGES");
    for text in APPLYING {
        page.paragraph(text);
    }
    page.section("EXAMPLES");
    for setup in &SETUPS {
        page.paragraph(&format!("{}:", setup.title));
        page.example(setup.file);
    }
    page.write(&SEE_ALSO);
    page.finish()
}

const SEE_ALSO: Section = Section {
    title: "SEE ALSO",
    blocks: &[Text("`peerix`(8), `nix.conf`(5), `nix-store`(1)")],
};

fn page_key(page: &mut Page, key: &Key) {
    let Comment { text, values, rest } = &key.comment;
    page.item(
        &format!(
            "`{}` ({}; default: {})",
            key.name,
            key.kind,
            key.default.replace('`', "")
        ),
        text,
    );
    if !values.is_empty() {
        let values = values.iter().cloned();
        page.nested(values.map(|(value, meaning)| (format!("`{value}`"), meaning)));
        page.continued(rest);
    }
    let mut further = key.remarks.clone();
    further.extend(
        key.example
            .as_ref()
            .map(|value| format!("Example: {value}")),
    );
    if !further.is_empty() {
        page.continued(&further.join(" "));
    }
}
