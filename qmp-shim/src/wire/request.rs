//! A request's members.

use serde_json::{Map, Value};

use crate::command_error::CommandError;

/// A command that a client wants to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the answer is to carry, if anything. It may be null.
    pub id: Option<Value>,
    /// The command's name: any string.
    pub command: String,
    /// Its arguments, which are not checked.
    pub arguments: Map<String, Value>,
}

impl Request {
    /// Checks a value that a client sent. Of several mistakes the first one is reported;
    /// that `execute` is missing comes last.
    ///
    /// # Errors
    ///
    /// When it is no object or has other members than a request's.
    pub(super) fn from_value(value: Value) -> Result<Self, CommandError> {
        let Value::Object(members) = value else {
            return Err(CommandError::generic("QMP input must be a JSON object"));
        };
        let mut id = None;
        let mut command = None;
        let mut arguments = Map::new();
        for (name, value) in members {
            match (name.as_str(), value) {
                ("id", value) => id = Some(value),
                ("execute", Value::String(name)) => command = Some(name),
                ("execute", _) => return Err(must_be("execute", "a string")),
                ("arguments", Value::Object(members)) => arguments = members,
                ("arguments", _) => return Err(must_be("arguments", "an object")),
                // Also `exec-oob`, since the capability for it is not offered.
                _ => {
                    return Err(CommandError::generic(format!(
                        "QMP input member '{name}' is unexpected"
                    )));
                }
            }
        }
        let lacking = || CommandError::generic("QMP input lacks member 'execute'");
        Ok(Self {
            id,
            command: command.ok_or_else(lacking)?,
            arguments,
        })
    }
}

fn must_be(member: &str, what: &str) -> CommandError {
    CommandError::generic(format!("QMP input member '{member}' must be {what}"))
}
