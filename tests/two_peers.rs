//! The README's first command does what it says.

#[expect(dead_code, reason = "its main is the example's")]
#[path = "examples/two-peers.rs"]
mod two_peers;

#[test]
fn the_example_pulls_a_path_and_says_from_whom_how_fast_and_that_it_is_right() {
    let mut said = Vec::new();
    two_peers::demonstrate(&mut said).expect("a pull");
    let said = String::from_utf8(said).expect("text");
    for part in [
        "holder  http://127.0.0.1:",
        "asker   http://127.0.0.2:",
        "200 in",
        "signature verified",
        " from 127.0.0.1:",
        "sha256 verified",
        "MB/s",
        "404 in",
        "both daemons stopped",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    assert!(said.lines().count() <= 8, "{said}");
}
