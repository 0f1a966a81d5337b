//! Questions about the machine around the disks. There is none: the answers are
//! true, idle or empty.

use ringback_qmp_shim::command::{self, names};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::event::Event;
use serde_json::{Value, json};

use super::control::Control;

pub(super) fn version() -> Value {
    json!({
        "qemu": { "micro": 2, "minor": 0, "major": 10 },
        "package": concat!("ringback ", env!("CARGO_PKG_VERSION")),
    })
}

pub(super) fn commands() -> Value {
    names().iter().map(|name| json!({ "name": name })).collect()
}

pub(super) fn schema() -> Value {
    ringback_qmp_shim::schema::introspect()
}

/// A machine that never runs and is never stopped by an error.
pub(super) fn status() -> Value {
    json!({ "running": true, "status": "running" })
}

pub(super) fn name() -> Value {
    json!({})
}

pub(super) fn uuid() -> Value {
    json!({ "UUID": "00000000-0000-0000-0000-000000000000" })
}

pub(super) fn kvm() -> Value {
    json!({ "enabled": false, "present": false })
}

/// A command that is known and not built.
pub(super) fn not_built(name: &str) -> CommandError {
    command::not_built(name)
}

impl Control {
    /// Nothing runs that could be stopped; who waits for the event gets it.
    pub(super) fn stop_machine(&self) -> Value {
        self.tell(&Event::Stop);
        json!({})
    }

    pub(super) fn continue_machine(&self) -> Value {
        self.tell(&Event::Resume);
        json!({})
    }
}
