//! `human-monitor-command`.

use ringback_qmp_shim::command_error::CommandError;

use super::Reply;
use super::control::Control;

impl Control {
    pub(super) async fn human(&mut self, line: &str) -> Reply {
        Err(CommandError::generic(format!("no '{line}' yet")))
    }
}
