//! `ringback backup`: one command that copies a disk, whole or what has changed,
//! and goes on after an interruption.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `args` | the command line |
//! | `start` | what is opened, and whether an earlier run is gone on with |
//! | `session` | the run: what is there is checked, the rest copied, all compared |
//! | `finish` | the last word about bitmap and state |
//! | `source`, `target` | the two disks |
//! | `open`, `place` | from a name to a disk, and how that is recognized later |
//! | `state` | the file that says what is on the target |
//! | `compare` | source against target, on all shards |
//! | `bitmap` | what becomes of the source's bitmap |
//! | `server_bitmap` | one that an NBD server has |
//! | `interrupt` | signals |
//! | `progress`, `outcome` | what is shown meanwhile and at the end |
//! | `spans` | sets of bytes |

pub(crate) mod args;
mod bitmap;
mod compare;
mod finish;
mod interrupt;
mod open;
mod outcome;
mod place;
mod progress;
mod server_bitmap;
mod session;
mod source;
mod spans;
mod start;
mod state;
mod target;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use ringback_ring::Shards;
use ringback_ring::shards::{Config, available_cores};

use args::Args;
use interrupt::Interrupt;
use outcome::Outcome;
use progress::{Progress, Style};
use session::Context;

use crate::open::{Objects, advice};

/// The exit status of a command line that makes no sense; clap's.
const EXIT_USAGE: u8 = 2;
/// More shards than this copy no faster.
const SHARDS_MAX: usize = 4;

/// Runs a backup and reports.
///
/// # Errors
///
/// It could not begin.
pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    if let Err(error) = args.check() {
        eprintln!("ringback: {error}");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let mut objects = Objects::default();
    for text in &args.object {
        objects.add(text).map_err(|error| advised(&error))?;
    }
    let interrupt = Interrupt::listen()?;
    let config = Config {
        count: available_cores().len().clamp(1, SHARDS_MAX),
        // Whatever else runs on this machine goes first.
        pin: false,
        ..Config::default()
    };
    let shards = Shards::start(&config).map_err(|error| error.to_string())?;
    let progress = Arc::new(Progress::default());
    let context = Context {
        args: args.clone(),
        objects,
        progress: Arc::clone(&progress),
        interrupt,
    };
    let answer = shards.spawn_on(0, |shard| session::run(shard, context));
    let style = match (args.quiet, args.json) {
        (true, _) => Style::Quiet,
        (false, true) => Style::Json,
        (false, false) => Style::Human,
    };
    let outcome = progress::show_until(&progress, style, &answer);
    shards.stop();
    let outcome = outcome.map_err(|gone| gone.to_string())??;
    report(args, &outcome)?;
    Ok(ExitCode::from(outcome.ending.status()))
}

/// An error, and what to do about it if that is known.
fn advised(error: &str) -> String {
    match advice(error) {
        Some(advice) => format!("{}; {advice}", error.trim_end_matches('.')),
        None => error.to_owned(),
    }
}

fn report(args: &Args, outcome: &Outcome) -> Result<(), String> {
    for message in &outcome.messages {
        eprintln!("ringback: {message}");
    }
    let is_complete = !matches!(
        outcome.ending,
        outcome::Ending::Failed | outcome::Ending::Interrupted(_)
    );
    let text = if args.json {
        outcome.json(args).to_string()
    } else if args.quiet || !is_complete {
        return Ok(());
    } else {
        outcome.line(args)
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write to standard output: {error}"))
}
