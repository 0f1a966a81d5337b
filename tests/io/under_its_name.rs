//! A link of the name `qemu-io` to the program is the shell, too.

use std::os::unix::fs::symlink;
use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::process::{Running, run};
use ringback_tests::scratch::Scratch;

#[test]
fn a_link() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let link = scratch.join("qemu-io");
    symlink(ringback(), &link).expect("a link");
    let asked = Running::start_asking(&mut Command::new(&link), "help info\n").finish();
    let asked = asked.succeeded();
    assert_eq!(
        asked.stdout,
        "qemu-io> info -- prints information about the current file\nqemu-io> "
    );
    let refused = run(Command::new(&link).arg("-z")).failed_with(1);
    // As getopt does: the name as it was called.
    let line = format!("{}: invalid option -- 'z'\n", link.display());
    assert_eq!(refused.stderr, line);
    let refused = run(Command::new(&link).arg("nothing")).failed_with(1);
    assert_eq!(
        refused.stderr,
        "qemu-io: can't open device nothing: Could not open 'nothing': No such file or directory\n"
    );
}
