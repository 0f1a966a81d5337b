//! The monitor itself, and the machine around the disks.

use super::argument::arguments;
use crate::visit::words;

arguments! {
    /// Arguments of `qmp_capabilities`.
    pub struct QmpCapabilities {
        /// What the client wants.
        enable: Option<Vec<QmpCapability>> = "enable",
    }

    /// Arguments of `getfd`.
    pub struct Getfd {
        /// What the file descriptor is called from now on.
        fdname: String = "fdname",
    }

    /// Arguments of `closefd`.
    pub struct Closefd {
        /// What the file descriptor is called.
        fdname: String = "fdname",
    }

    /// Arguments of `human-monitor-command`.
    pub struct HumanMonitorCommand {
        /// The command with its arguments.
        command_line: String = "command-line",
        /// The processor that it is about.
        cpu_index: Option<i64> = "cpu-index",
    }
}

words! {
    /// What a monitor can do beyond the least.
    pub enum QmpCapability {
        /// Run commands out of band.
        Oob = "oob",
    }
}
