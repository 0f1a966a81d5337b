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

/// Commands whose arguments are read, and which nothing carries out yet. A client
/// that asks first is not told of them.
const NOT_YET: [&str; 3] = ["block_set_io_throttle", "closefd", "getfd"];

pub(super) fn commands() -> Value {
    let there = names().iter().filter(|name| !NOT_YET.contains(name));
    there.map(|name| json!({ "name": name })).collect()
}

pub(super) fn schema() -> Value {
    let Value::Array(entries) = ringback_qmp_shim::schema::introspect() else {
        return Value::Array(Vec::new());
    };
    let is_there = |entry: &Value| {
        let name = entry["name"].as_str().unwrap_or_default();
        entry["meta-type"] != "command" || !NOT_YET.contains(&name)
    };
    entries.into_iter().filter(is_there).collect()
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
    /// Nothing runs that could be stopped, but what was said is remembered.
    pub(super) fn stop_machine(&mut self) -> Value {
        if std::mem::replace(&mut self.is_stopped, true) {
            return json!({});
        }
        self.tell(&Event::Stop);
        json!({})
    }

    pub(super) fn continue_machine(&mut self) -> Value {
        if std::mem::replace(&mut self.is_stopped, false) {
            self.tell(&Event::Resume);
        }
        json!({})
    }

    pub(super) fn machine_status(&self) -> Value {
        let status = if self.is_stopped { "paused" } else { "running" };
        json!({ "running": !self.is_stopped, "status": status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(list: &Value) -> Vec<&str> {
        let entries = list.as_array().expect("a list");
        let names = entries.iter().map(|entry| entry["name"].as_str());
        names.map(|name| name.expect("a name")).collect()
    }

    #[test]
    fn only_what_is_carried_out_is_told() {
        let (commands, schema) = (commands(), schema());
        let (told, described) = (names_in(&commands), names_in(&schema));
        for name in names() {
            let is_there = !NOT_YET.contains(name);
            assert_eq!(told.contains(name), is_there, "{name}");
            assert_eq!(described.contains(name), is_there, "{name}");
        }
        for name in NOT_YET {
            assert!(names().contains(&name), "{name} is no command");
        }
    }
}
