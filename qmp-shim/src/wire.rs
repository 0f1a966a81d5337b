//! One monitor's conversation in QMP: bytes in, requests out; results in, lines out.
//!
//! A [`Session`] does no I/O and runs no command. It greets, reads requests from a stream
//! of bytes, negotiates, answers by itself what is no proper request, and words the
//! answers to the others. Who owns it moves the bytes.
//!
//! The protocol is that of QEMU 10.0. Out-of-band execution is not offered: a monitor that
//! answers in order has no use for it, and clients only ask for what is offered.
//!
//! # Order and memory
//!
//! Clients match answers to requests by their order. So what [`Session::receive`] returns
//! is to be worked off in order, each [`Incoming::Answer`] sent when its turn comes and no
//! earlier. One byte can complete at most one of them, so the size of the pieces that are
//! received bounds how many answers are outstanding. What is kept between two pieces is
//! bounded by [`json::MAX_TEXT`] and [`json::MAX_TOKENS`].

use serde_json::{Map, Value, json};

use crate::command_error::CommandError;
use crate::json::{self, JsonError};

mod capabilities;
mod request;
#[cfg(test)]
mod tests;

pub use request::Request;

/// The version of QEMU whose protocol this is: major, minor, micro.
const QEMU_VERSION: (u32, u32, u32) = (10, 0, 2);

/// What a client's bytes turn out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A command to run, and to answer with [`Session::success`] or [`Session::failure`].
    Request(Request),
    /// A line to send, without the line end (CR LF).
    Answer(String),
}

/// One client's conversation, from the greeting to the end of the connection.
#[derive(Debug)]
pub struct Session {
    stream: json::Stream,
    /// Lines are broken and indented.
    pretty: bool,
    negotiated: bool,
}

impl Session {
    /// A session with a client that has just connected. A pretty one writes JSON with line
    /// ends and four blanks a level.
    #[must_use]
    pub fn new(pretty: bool) -> Self {
        Self {
            stream: json::Stream::new(),
            pretty,
            negotiated: false,
        }
    }

    /// The first line to send.
    #[must_use]
    pub fn greeting(&self) -> String {
        let (major, minor, micro) = QEMU_VERSION;
        let greeting = json!({
            "version": {
                "qemu": {"micro": micro, "minor": minor, "major": major},
                "package": concat!("ringback ", env!("CARGO_PKG_VERSION")),
            },
            "capabilities": [],
        });
        self.line([("QMP", &greeting)])
    }

    /// Reads what the client sent: any piece of the stream, which may end anywhere.
    pub fn receive(&mut self, bytes: &[u8]) -> Vec<Incoming> {
        let read = self.stream.feed(bytes);
        read.into_iter()
            .map(|value| self.understand(value))
            .collect()
    }

    /// Whether the client has ended the negotiation: only then it gets events. It has as
    /// soon as [`Session::receive`] returns the answer that says so, which is to be sent
    /// before any event.
    #[must_use]
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// The answer to a request whose command gave `value`.
    #[must_use]
    pub fn success(&self, id: Option<&Value>, value: &Value) -> String {
        let id = id.map(|id| ("id", id));
        self.line([("return", value)].into_iter().chain(id))
    }

    /// The answer to a request whose command failed.
    #[must_use]
    pub fn failure(&self, id: Option<&Value>, error: &CommandError) -> String {
        let error = json!({"class": error.class.name(), "desc": error.desc});
        let id = id.map(|id| ("id", id));
        self.line(id.into_iter().chain([("error", &error)]))
    }

    /// An event that happened so many seconds and microseconds after the Unix epoch. One
    /// that says all with its name has no data.
    #[must_use]
    pub fn event(
        &self,
        name: &str,
        data: Option<&Value>,
        seconds: u64,
        microseconds: u32,
    ) -> String {
        let timestamp = json!({"seconds": seconds, "microseconds": microseconds});
        let name = Value::from(name);
        let data = data.map(|data| ("data", data));
        let members = [("timestamp", &timestamp), ("event", &name)];
        self.line(members.into_iter().chain(data))
    }

    fn understand(&mut self, read: Result<Value, JsonError>) -> Incoming {
        let value = match read {
            Ok(value) => value,
            Err(error) => {
                let error = CommandError::generic(error.to_string());
                return Incoming::Answer(self.failure(None, &error));
            }
        };
        // Before anything else, for it is echoed with every error.
        let id = value.get("id").cloned();
        let request = match Request::from_value(value) {
            Ok(request) => request,
            Err(error) => return Incoming::Answer(self.failure(id.as_ref(), &error)),
        };
        if request.command == capabilities::COMMAND {
            Incoming::Answer(match self.negotiate(&request.arguments) {
                Ok(()) => self.success(id.as_ref(), &json!({})),
                Err(error) => self.failure(id.as_ref(), &error),
            })
        } else if self.negotiated {
            Incoming::Request(request)
        } else {
            Incoming::Answer(self.failure(id.as_ref(), &capabilities::expected()))
        }
    }

    fn negotiate(&mut self, arguments: &Map<String, Value>) -> Result<(), CommandError> {
        let wanted = capabilities::wanted(arguments)?;
        if self.negotiated {
            return Err(capabilities::complete());
        }
        capabilities::refuse(&wanted)?;
        self.negotiated = true;
        Ok(())
    }

    /// The line ends within a pretty line are those of the wire, too.
    fn line<'a>(&self, members: impl IntoIterator<Item = (&'a str, &'a Value)>) -> String {
        let text = json::write_object(members, self.pretty);
        if self.pretty {
            // Within strings they are escaped.
            text.replace('\n', "\r\n")
        } else {
            text
        }
    }
}
