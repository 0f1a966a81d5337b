//! Runs ringback and its peers on the same disks in turn, and prints medians and
//! their ratios: machines drift, ratios of neighbours do not.
//!
//! | scenario | peers | figure |
//! | --- | --- | --- |
//! | `idle-backup` | `qemu-img convert -n -W -m N -t none -T none` | seconds for the whole image |
//! | `idle-guest` | `fio` (io_uring, direct) | 4 KiB random writes a second at depth 1 |
//! | `qcow2-read` | raw, imago, qcow2-rs, `qemu-img bench` | 4 KiB reads a second, processor time |
//! | `qcow2-write` | the same | sequential writes and random overwrites |
//! | `daemons` | qemu-storage-daemon, `qemu-img convert`, nbdcopy, fio | backups, filters and snapshots under guests: see [`duel`] |
//! | `system-calls` | qemu-storage-daemon | calls for each write and each MiB copied, by `strace` |
//! | `nbd` | qemu-storage-daemon, nbdkit | what `fio` gets over NBD, processor time of the server |

#![forbid(unsafe_code)]

mod cleanup;
mod command;
mod daemon;
mod disks;
mod drive;
mod duel;
mod engine;
mod figures;
mod guest;
mod history;
mod idle;
mod images;
mod load;
mod nbd;
mod nbd_client;
mod output;
mod pattern;
mod peers;
mod place;
mod system_calls;
mod tournament;
mod verify;

use std::process::ExitCode;

use clap::Parser;

/// Run ringback and its peers in turn on the same files; print medians and
/// ratios.
#[derive(Debug, Parser)]
enum Scenario {
    /// A backup of an idle disk, against qemu-img convert
    IdleBackup(idle::Options),
    /// A guest without a backup, against fio
    IdleGuest(idle::Options),
    /// Random reads of a full qcow2 image, against raw and other qcow2 drivers
    #[command(name = "qcow2-read")]
    Qcow2Read(disks::Options),
    /// Writes into a qcow2 image, against raw and other qcow2 drivers
    #[command(name = "qcow2-write")]
    Qcow2Write(disks::WriteOptions),
    /// A raw disk over NBD, against qemu-storage-daemon and nbdkit
    Nbd(nbd::Options),
    /// System calls for each request of a guest and MiB of a backup, against qemu-storage-daemon
    SystemCalls(system_calls::Options),
    /// Backups, filters and snapshots under guests, against qemu-storage-daemon
    Daemons(Box<duel::Options>),
}

fn main() -> ExitCode {
    let scenario = Scenario::parse();
    if let Err(message) = cleanup::at_signals() {
        eprintln!("ringback-compare: {message}");
        return ExitCode::FAILURE;
    }
    let result = match scenario {
        Scenario::IdleBackup(options) => idle::compare(idle::Scenario::Backup, &options),
        Scenario::IdleGuest(options) => idle::compare(idle::Scenario::Guest, &options),
        Scenario::Qcow2Read(options) => disks::read(&options),
        Scenario::Qcow2Write(options) => disks::write(&options),
        Scenario::SystemCalls(options) => system_calls::compare(&options),
        Scenario::Nbd(options) => nbd::compare(&options),
        Scenario::Daemons(options) => duel::compare(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ringback-compare: {message}");
            ExitCode::FAILURE
        }
    }
}
