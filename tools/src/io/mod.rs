//! `ringback io`: a shell for disk images that stands where `qemu-io` stands.
//!
//! The same options, the same lines on the same streams, the same exit status,
//! so that test scripts written for it run unchanged.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `args` | the command line |
//! | `getopt`, `number`, `options` | pure: options, sizes, option strings |
//! | `program` | its session: an image, command lines from options or input |
//! | `monitor`, `hmp` | the same commands on nodes of a daemon, and the lines around them |
//! | `shell` | commands one after the other |
//! | `requests` | those that go on beside them |
//! | `commands` | the table of commands and what they do |
//! | `disk` | an open disk, whosever it is |
//! | `image` | one that is opened here |
//! | `report`, `output` | what is said, and when it appears |

mod args;
mod commands;
pub(crate) mod disk;
mod getopt;
pub(crate) mod hmp;
mod image;
pub(crate) mod monitor;
mod number;
mod options;
mod output;
mod program;
mod report;
mod requests;
mod shell;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use ringback_ring::Shards;
use ringback_ring::shards::Config;

use args::{Args, Names, Refusal, Request};
use output::complain;

/// The name which others know.
const NAME: &str = "qemu-io";

/// Most memory for buffers, in bytes: many of the largest requests.
const ARENA_BYTES: usize = 64 << 30;

/// Runs the shell if the program was called for it: under the name `qemu-io`,
/// or as `ringback io`.
pub(crate) fn run_if_called(mut words: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let called = words.next()?;
    let names = if Path::new(&called).file_name() == Some(OsStr::new(NAME)) {
        Names {
            called: called.to_string_lossy().into_owned(),
            program: NAME.into(),
        }
    } else if words.next()? == "io" {
        Names {
            called: NAME.into(),
            program: NAME.into(),
        }
    } else {
        return None;
    };
    Some(run(names, words))
}

/// The same with the words behind `ringback io`.
pub(crate) fn run_words(words: Vec<OsString>) -> ExitCode {
    let names = Names {
        called: NAME.into(),
        program: NAME.into(),
    };
    run(names, words.into_iter())
}

fn run(names: Names, words: impl Iterator<Item = OsString>) -> ExitCode {
    // Names of files that are no text could not be given in options either.
    let words: Vec<String> = match words.map(OsString::into_string).collect() {
        Ok(words) => words,
        Err(word) => {
            let word: OsString = word;
            complain(&format!("{NAME}: '{}' is not UTF-8", word.display()));
            return ExitCode::FAILURE;
        }
    };
    match Args::parse(&names, &words) {
        Ok(Request::Run(args)) => run_session(names, *args),
        Ok(Request::Show(text)) => {
            show(&text);
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            match refusal {
                Refusal::Error(text) => complain(&format!("{}: {text}", names.program)),
                Refusal::Option(text) => {
                    complain(&text);
                    show(&args::usage(&names.program));
                }
                Refusal::Usage => show(&args::usage(&names.program)),
            }
            ExitCode::FAILURE
        }
    }
}

fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be listening.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn run_session(names: Names, args: Args) -> ExitCode {
    let program = names.program.clone();
    let config = Config {
        count: 1,
        pin: false,
        ring_entries: 64,
        arena_bytes: ARENA_BYTES,
        ..Config::default()
    };
    let shards = match Shards::start(&config) {
        Ok(shards) => shards,
        Err(error) => {
            complain(&format!("{program}: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let session = shards.spawn_on(0, |shard| program::run(shard, names, args));
    let is_well = session.wait();
    shards.stop();
    if is_well == Ok(true) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
