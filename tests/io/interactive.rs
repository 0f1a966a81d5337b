//! Commands from standard input.

use std::io::Read;
use std::process::{Command, Stdio};

use ringback_tests::binary::ringback;

use crate::beside::{Beside, filter};

const RAW: &[&str] = &["-f", "raw", "a.img"];

#[test]
fn prompts_and_ends() {
    let Some(beside) = Beside::new() else { return };
    for input in [
        "",
        "\n",
        "\n\n",
        "length",
        "length\n",
        "quit\nlength\n",
        "  length  \n q x\n",
        "foo\nlength\n",
        "length\r\n",
        "read 0 512\nread 2M 1\nread 0 512\n",
    ] {
        beside.agree_on(RAW, input);
        beside.agree_on(&[], input);
    }
}

#[test]
fn long_lines_are_cut() {
    let Some(beside) = Beside::new() else { return };
    for blanks in [1010, 1016, 1017, 1018, 1023, 1024, 2050] {
        let line = " ".repeat(blanks) + "length\nlength\n";
        beside.agree_on(RAW, &line);
    }
}

/// Requests beside the commands are waited for where QEMU waits.
#[test]
fn requests_that_are_waited_for() {
    let Some(beside) = Beside::new() else { return };
    let input = "aio_write -q -P 1 0 64k\naio_flush\nread -P 1 0 64k\nquit\n";
    beside.agree_on(RAW, input);
    beside.agree_on(RAW, "aio_write -q -P 2 0 64k\nclose\nlength\n");
    beside.agree_on(RAW, "aio_write -q -P 3 0 64k\n");
    beside.same_images();
}

/// With both streams on one pipe, lines come in the order of the commands, or
/// errors first if commands came as options.
#[test]
fn the_order_of_both_streams() {
    let Some(beside) = Beside::new() else { return };
    let commands = ["length", "foo", "length", "read x 0", "bar"];
    let input = commands.map(|line| format!("{line}\n")).concat();
    let options: Vec<&str> = commands.iter().flat_map(|line| ["-c", line]).collect();
    for (words, input) in [
        (RAW.to_vec(), input.as_str()),
        ([RAW, &options[..]].concat(), ""),
    ] {
        let merged = ["qemu-io", "ringback"].map(|program| merged(&beside, program, &words, input));
        assert_eq!(merged[0], merged[1]);
    }
}

fn merged(beside: &Beside, program: &str, words: &[&str], input: &str) -> String {
    let mut command = match program {
        "ringback" => {
            let mut command = Command::new(ringback());
            command.arg("io");
            command
        }
        program => Command::new(program),
    };
    let file = beside.join("input");
    std::fs::write(&file, input).expect("a file");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    command
        .args(words)
        .current_dir(beside.own_directory())
        .stdin(Stdio::from(std::fs::File::open(&file).expect("a file")))
        .stdout(writer.try_clone().expect("a descriptor"))
        .stderr(writer);
    let mut child = command.spawn().expect("a program");
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    child.wait().expect("a child");
    filter(&text)
}

#[test]
fn what_was_printed_before_a_signal() {
    let Some(beside) = Beside::new() else { return };
    let words = |command| ["-f", "raw", "a.img", "-c", "length", "-c", command];
    for command in ["sigraise 15", "sigraise 9", "sigraise 6", "abort"] {
        beside.agree_on(&words(command), "");
    }
    beside.agree_on(RAW, "length\nabort\nlength\n");
}
