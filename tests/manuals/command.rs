//! peerix(8): the options and commands as the program defines them, between sections of ours.

use clap::{Arg, Command};
use clap_mangen::Man;

use crate::{
    page::{Page, without_preamble},
    prose,
};

/// The whole page.
pub(crate) fn page(definition: &Command) -> String {
    let mut page = Page::new("PEERIX", "8", "System administration");
    name(&mut page, definition);
    synopsis(&mut page, definition);
    page.write(&prose::DESCRIPTION);
    options(&mut page, definition);
    commands(&mut page, definition);
    for section in &prose::AFTER_COMMANDS {
        page.write(section);
    }
    page.finish()
}

fn name(page: &mut Page, definition: &Command) {
    let about = definition.get_about().expect("an about").to_string();
    let mut about = about.chars();
    let first = about.next().expect("an about").to_ascii_lowercase();
    page.section("NAME");
    page.paragraph(&format!("peerix - {first}{}", about.as_str()));
}

fn synopsis(page: &mut Page, definition: &Command) {
    page.section("SYNOPSIS");
    page.usage("peerix", &format!("[`serve`] {}", arguments(definition)));
    for command in own_commands(definition) {
        page.usage(
            &format!("peerix {}", command.get_name()),
            &arguments(command),
        );
    }
    page.usage("peerix help", "[{COMMAND}]");
    page.usage("peerix --version", "");
}

/// All commands but `serve`, which has the options of the program itself.
fn own_commands(definition: &Command) -> impl Iterator<Item = &Command> {
    let commands = definition.get_subcommands();
    commands.filter(|command| !command.is_hide_set() && command.get_name() != "serve")
}

/// What a command takes, for the synopsis.
fn arguments(command: &Command) -> String {
    let shown = command.get_arguments().filter(|one| !one.is_hide_set());
    let shown: Vec<String> = shown.map(argument).collect();
    shown.join(" ")
}

fn argument(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    let value = if takes_value {
        format!("{{{}}}", values.join(" "))
    } else {
        String::new()
    };
    let text = match argument.get_long() {
        Some(long) if takes_value => format!("`--{long}` {value}"),
        Some(long) => format!("`--{long}`"),
        None => value,
    };
    if argument.is_required_set() {
        text
    } else {
        format!("[{text}]")
    }
}

fn options(page: &mut Page, definition: &Command) {
    page.section("OPTIONS");
    page.paragraph(prose::ABOUT_OPTIONS);
    // What a page for all says of every command is said once.
    page.raw(&listed(definition.clone().subcommands([] as [Command; 0])));
    page.blocks(prose::MORE_ABOUT_OPTIONS);
}

fn commands(page: &mut Page, definition: &Command) {
    page.section("COMMANDS");
    for command in definition
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
    {
        let name = command.get_name();
        page.subsection(&format!("peerix {name}"));
        let about = command.get_about().expect("an about");
        page.paragraph(&format!("{about}."));
        if name != "serve" {
            page.raw(&listed(command.clone().disable_help_flag(true)));
        }
        let more = prose::ABOUT_COMMANDS.iter().filter(|(of, _)| *of == name);
        for (_, blocks) in more {
            page.blocks(blocks);
        }
    }
    page.subsection("peerix help");
    page.paragraph(prose::ABOUT_HELP);
}

/// The options and arguments as clap_mangen lists them, without its heading and its brackets: what is
/// to be replaced is italic. The values of an argument stand in its sentence.
fn listed(command: Command) -> String {
    let command = command.mut_args(|argument| {
        if !argument.get_action().takes_values() {
            return argument;
        }
        let values = argument.get_possible_values();
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        match argument.get_help() {
            Some(help) if !names.is_empty() => {
                let help = format!("{help}: {}", names.join(", "));
                argument.help(help).hide_possible_values(true)
            }
            _ => argument,
        }
    });
    let mut text = Vec::new();
    Man::new(command)
        .render_options_section(&mut text)
        .expect("a Vec takes it");
    let text = String::from_utf8(text).expect("UTF-8");
    let list = without_preamble(&text)
        .strip_prefix(".SH OPTIONS\n")
        .unwrap_or_default()
        .replace("\\fI<", "\\fI")
        .replace(">\\fR", "\\fR")
        .replace("\n<\\fI", "\n\\fI")
        .replace("\\fR>\n", "\\fR\n");
    typed(&sentences(&list))
}

/// The texts of tagged paragraphs with a full stop.
fn sentences(list: &str) -> String {
    let mut since_tag = None;
    let mut text = String::new();
    for line in list.lines() {
        since_tag = match since_tag {
            _ if line == ".TP" => Some(0),
            since => since.map(|lines| lines + 1),
        };
        text.push_str(line);
        let is_text = since_tag == Some(2) && !line.ends_with('.');
        text.push_str(if is_text { ".\n" } else { "\n" });
    }
    text
}

/// What clap has in backticks, in bold.
fn typed(text: &str) -> String {
    let mut parts = text.split('`');
    let mut typed = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        typed.push_str(if index % 2 == 0 { "\\fB" } else { "\\fR" });
        typed.push_str(part);
    }
    typed
}

#[test]
fn what_is_told_of_commands_is_told_of_commands_that_exist() {
    let definition = peerix::cli::definition();
    for (name, _) in prose::ABOUT_COMMANDS {
        let found = definition.find_subcommand(name);
        assert!(found.is_some(), "there is no command {name}");
    }
}
