//! The lines about commands.

use ringback_tests::process::output_of;

use crate::beside::{Beside, alone};

#[test]
fn all_commands_in_one_line_each() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on(&["-c", "help"], "");
    beside.agree_on(&["-c", "?"], "");
}

/// The first line is an interface; what follows is each program's own text.
#[test]
fn each_command() {
    let Some(beside) = Beside::new() else { return };
    let all = output_of("qemu-io", &["-c", "help"]);
    let names = all.lines().map_while(|line| line.split(' ').next());
    let aliases = ["r", "w", "f", "t", "l", "i", "d", "a", "c", "o", "q", "?"];
    let zones = ["zrp", "zo", "zc", "zf", "zrs", "zap"];
    let mut count = 0;
    for name in names
        .filter(|name| !name.is_empty() && *name != "Use")
        .chain(aliases)
        .chain(zones)
    {
        let command = format!("help {name}");
        let theirs = output_of("qemu-io", &["-c", &command]);
        let ours = alone(&beside.own_directory(), &["-c", &command], "").succeeded();
        assert_eq!(ours.stdout.lines().next(), theirs.lines().next());
        let lines = [&ours.stdout, &theirs].map(|text| text.lines().count());
        assert_eq!(lines.map(|lines| lines > 1), [lines[1] > 1; 2], "{name}");
        assert_eq!(ours.stderr, "");
        count += 1;
    }
    assert_eq!(count, 50);
}
