//! `ringback`: back up the disks of running virtual machines without the guests
//! feeling it.
//!
//! One program with subcommands. Exit status: 0 done, 1 failed, 2 wrong usage,
//! 3 done but the verification found a difference, 4 a full backup was made where
//! an increment was asked for.

#![forbid(unsafe_code)]

mod address;
mod backup;
mod bench;
mod daemon;
mod io;
mod latency_target;
mod nodes;
mod open;
mod report;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Back up the disks of running virtual machines without the guests feeling it.
#[derive(Debug, Parser)]
#[command(name = "ringback", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy a disk, whole or what has changed, and go on after an interruption
    Backup(Box<backup::args::Args>),
    /// Put a disk under guest load, back it up at one instant, verify, report
    Bench(Box<bench::args::Args>),
    /// Serve disks, driven over QMP, as qemu-storage-daemon does
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Daemon {
        /// Options, as of qemu-storage-daemon; see 'ringback daemon -h'
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Read, write and change a disk image by commands, as qemu-io does
    #[command(disable_help_flag = true)]
    Io {
        /// Options and a file, as of qemu-io; see 'ringback io -h'
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Show how long the operations of a running daemon take
    Report(report::running::Args),
}

/// The exit status of a run whose verification failed.
const EXIT_DIFFERENT: u8 = 3;

fn main() -> ExitCode {
    // Before clap: its options and messages are those of qemu-io.
    if let Some(status) = io::run_if_called(std::env::args_os()) {
        return status;
    }
    if let Some(status) = daemon::run_if_called(std::env::args_os()) {
        return status;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
    let result = match Cli::parse().command {
        Command::Backup(args) => backup::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Daemon { words } => Ok(daemon::run(words)),
        Command::Io { words } => Ok(io::run_words(words)),
        Command::Report(args) => report::running::run(&args),
    };
    result.unwrap_or_else(|message| {
        eprintln!("ringback: {message}");
        ExitCode::FAILURE
    })
}
