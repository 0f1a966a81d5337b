//! The commands on a node of somebody else's graph, as QEMU's monitor has them
//! in `human-monitor-command qemu-io`.
//!
//! # The way of one line
//!
//! 1. [`Monitor::look`] finds the command. There is none: that has been said, the
//!    reply is empty.
//! 2. Who has the graph attaches to the node with [`Call::access`]; a refusal is
//!    the [`reply`].
//! 3. [`Monitor::run`] runs the command on the [`Disk`] that was made of the
//!    attachment, and answers the text of the reply.
//! 4. `aio_read` and `aio_write` go on after that: who has the graph detaches
//!    once [`Ended::requests`] are idle. Unlike QEMU, which waits for them before
//!    it answers, and so for ever if a breakpoint holds one.
//!
//! # Where things are said
//!
//! Reports and failures go to standard output, what is wrong with a command line
//! to standard error, errors of the block layer into the reply.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;

use ringback_block::graph::{Access, GraphError};
use ringback_block::request::Preallocation;
use ringback_ring::Shard;

use super::commands::{Call, Needs};
use super::disk::Disk;
use super::output::Output;
pub(crate) use super::requests::Requests;
use super::shell::{Place, Shell};

/// A node's graph, as far as commands need it.
pub(crate) trait Owner {
    /// Gives the node another size.
    ///
    /// # Errors
    ///
    /// What the graph answers.
    fn resize(
        &self,
        size: u64,
        mode: Preallocation,
    ) -> Pin<Box<dyn Future<Output = Result<(), GraphError>> + '_>>;
}

/// A node that is lent to one command and to the requests it begins.
pub(crate) struct Lent {
    disk: Rc<Disk>,
    owner: Rc<dyn Owner>,
    reply: RefCell<String>,
}

impl Lent {
    pub(super) fn disk(&self) -> Rc<Disk> {
        Rc::clone(&self.disk)
    }

    pub(super) async fn resize(&self, size: u64, mode: Preallocation) -> Result<(), GraphError> {
        self.owner.resize(size, mode).await
    }

    /// Adds to the reply.
    pub(super) fn reply(&self, text: &str) {
        self.reply.borrow_mut().push_str(&reply(text));
    }

    pub(super) fn take_reply(&self) -> String {
        self.reply.take()
    }
}

/// Lines as they stand in a reply.
pub(crate) fn reply(text: &str) -> String {
    format!("{}\r\n", text.replace('\n', "\r\n"))
}

/// A command that has ended.
pub(crate) struct Ended {
    /// The text of the reply; mostly empty.
    pub(crate) reply: String,
    /// What it has begun on its disk and what goes on: the attachment must stay
    /// until they are idle.
    pub(crate) requests: Rc<Requests>,
}

/// Runs commands; there is one for all nodes.
pub(crate) struct Monitor {
    shard: Shard,
    out: Output,
    requests: Rc<Requests>,
}

impl Monitor {
    /// A monitor that speaks on the streams of this process, at once.
    pub(crate) fn new(shard: &Shard) -> Self {
        Self::speaking(shard, Output::immediate())
    }

    fn speaking(shard: &Shard, out: Output) -> Self {
        Self {
            shard: shard.clone(),
            out,
            requests: Rc::default(),
        }
    }

    /// A line on standard output.
    pub(crate) fn say(&self, line: &str) {
        self.out.line(line);
    }

    /// The command of a line. None: the line is empty, or it has been said why
    /// it cannot be run.
    pub(crate) fn look(&self, line: &str) -> Option<Call> {
        let looked = Call::parse(line, true).and_then(|call| {
            call.as_ref().map_or(Ok(()), Call::check_count)?;
            Ok(call)
        });
        looked.unwrap_or_else(|text| {
            self.out.complain(&text);
            None
        })
    }

    /// Runs a command on a disk, which is let go when the command and all that
    /// it has begun has ended.
    pub(crate) async fn run(&self, call: &Call, disk: Disk, owner: Rc<dyn Owner>) -> Ended {
        let lent = Lent {
            disk: Rc::new(disk),
            owner,
            reply: RefCell::default(),
        };
        let (shard, out) = (self.shard.clone(), self.out.clone());
        let place = Place::Monitor(lent);
        let shell = Rc::new(Shell::beside(shard, out, place, &self.requests));
        shell.run(call).await;
        Ended {
            reply: shell.take_reply(),
            requests: Rc::clone(&shell.requests),
        }
    }
}

impl Call {
    /// What it does with its disk. Like QEMU's, commands do not mind writers,
    /// nor those who do not want what they read to be consistent.
    pub(crate) fn access(&self) -> Access {
        let needs = self.command.needs;
        Access {
            write: matches!(needs, Needs::Writing | Needs::Resizing),
            resize: needs == Needs::Resizing,
            ..Access::default()
        }
    }
}

#[cfg(test)]
mod tests;
