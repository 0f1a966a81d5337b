//! `ringback bench`: a guest load on a disk, a backup and fleecing reads against
//! it, verification that both are the disk at one instant, and a report.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `args` | the command line |
//! | `prepare` | the files: made on the spot or given, and what may be overwritten |
//! | `session` | the run from the first write to the verdict |
//! | `fill`, `guest`, `fleece`, `verify` | its kinds of work |
//! | `summary` | from what was measured to the report |
//! | `layout`, `pattern`, `history`, `load`, `random` | pure: what is asked for, written, expected |
//! | `progress` | the bar |

pub(crate) mod args;
mod fill;
mod fleece;
mod guest;
mod history;
mod layout;
mod load;
mod pattern;
mod prepare;
mod progress;
mod random;
mod session;
mod summary;
mod verify;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use ringback_ring::Shards;

use crate::report;
use args::Args;
use progress::Progress;
use session::Session;

/// Runs the bench and reports. An error: it could not be run to its end.
pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    args.check()?;
    let mut args = args.clone();
    args.resolve();
    let args = &args;
    check_reports(args)?;
    let disks = prepare::Disks::prepare(args)?;
    let shards = Shards::start(&args.shards_config()).map_err(|error| error.to_string())?;
    let progress = Arc::new(Progress::default());
    let session = Session::new(args.clone(), disks, Arc::clone(&progress));
    let answer = shards.spawn_on(0, |shard| async move { session.run(&shard).await });
    let outcome = progress::show_until(&progress, args.no_progress, &answer);
    shards.stop();
    let outcome = outcome.map_err(|gone| gone.to_string())??;
    write_reports(args, &outcome)?;
    // JSON on standard output is alone there.
    let table = report::table::render_table(&outcome.report);
    if args.json.as_deref().is_some_and(is_standard_output) {
        eprint!("{table}");
    } else {
        print_out(&table)?;
    }
    Ok(verdict(&outcome))
}

fn is_standard_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn print_out(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write to standard output: {error}"))
}

/// Before the run: a report that cannot be written is found out now.
fn check_reports(args: &Args) -> Result<(), String> {
    if let Some(path) = args
        .json
        .as_deref()
        .filter(|path| !is_standard_output(path))
    {
        let exists = path.exists();
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| format!("cannot write '{}': {error}", path.display()))?;
        if !exists {
            // A run that is refused leaves no report.
            let _ = std::fs::remove_file(path);
        }
    }
    if let Some(directory) = &args.hgrm {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("cannot make '{}': {error}", directory.display()))?;
    }
    Ok(())
}

/// Before the table: whoever sees the table finds the files.
fn write_reports(args: &Args, outcome: &session::Outcome) -> Result<(), String> {
    if let Some(path) = &args.json {
        let text = report::to_json(&outcome.report) + "\n";
        if is_standard_output(path) {
            print_out(&text)?;
        } else {
            std::fs::write(path, text)
                .map_err(|error| format!("cannot write '{}': {error}", path.display()))?;
        }
    }
    if let Some(directory) = &args.hgrm {
        let histograms: Vec<_> = outcome
            .histograms
            .iter()
            .map(|(name, histogram)| (*name, histogram))
            .collect();
        report::hgrm::write_files(directory, &histograms)
            .map_err(|error| format!("cannot write to '{}': {error}", directory.display()))?;
    }
    Ok(())
}

fn verdict(outcome: &session::Outcome) -> ExitCode {
    if let Some(failure) = &outcome.failure {
        eprintln!("ringback: {failure}");
    }
    match &outcome.report.verification {
        Some(verification) if !verification.held => ExitCode::from(crate::EXIT_DIFFERENT),
        Some(_) if outcome.failure.is_none() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
