//! Runs commands: one after the other, on one shard. What works beside them
//! (`aio_read`, `aio_write`) are tasks of the same shard, which go on whenever a
//! command waits for something.

use std::rc::Rc;

use ringback_block::graph::GraphError;
use ringback_block::request::Preallocation;
use ringback_ring::{Shard, error_text};

use super::commands::{Call, Failure, Needs, Outcome};
use super::disk::Disk;
use super::monitor::Lent;
use super::output::Output;
use super::program::Program;
use super::requests::{InFlight, Requests};
use crate::open;

/// Largest size of a disk, in bytes: QEMU keeps the last GiB below 2^63 free.
const SIZE_MAX: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// What commands work with.
pub(crate) struct Shell {
    pub(crate) shard: Shard,
    pub(crate) out: Output,
    /// Those that work beside the commands.
    pub(crate) requests: Rc<Requests>,
    place: Place,
}

/// Where commands come from, and whose disk they work on.
pub(crate) enum Place {
    /// The program itself, which opens images.
    Program(Box<Program>),
    /// A monitor, which lends a node of its graph.
    Monitor(Lent),
}

impl Shell {
    /// Whether buffers lie beside the alignment of memory.
    pub(crate) fn misalign(&self) -> bool {
        matches!(&self.place, Place::Program(program) if program.misalign)
    }

    /// A shell with requests of its own.
    pub(crate) fn new(shard: Shard, out: Output, place: Place) -> Self {
        Self {
            shard,
            out,
            requests: Rc::default(),
            place,
        }
    }

    /// A shell whose requests are counted among others, too.
    pub(crate) fn beside(shard: Shard, out: Output, place: Place, all: &Rc<Requests>) -> Self {
        Self {
            requests: Rc::new(Requests::among(all)),
            ..Self::new(shard, out, place)
        }
    }

    /// What commands have that only the program knows.
    ///
    /// # Panics
    ///
    /// In a monitor, which does not find these commands.
    pub(crate) fn program(&self) -> &Program {
        match &self.place {
            Place::Program(program) => program,
            Place::Monitor(_) => unreachable!("a monitor does not find this command"),
        }
    }

    /// Whether commands come from a monitor.
    pub(crate) fn is_monitor(&self) -> bool {
        matches!(self.place, Place::Monitor(_))
    }

    /// One command line; answers whether all went well.
    pub(crate) async fn command(self: &Rc<Self>, line: &str) -> bool {
        match Call::parse(line, self.is_monitor()) {
            Ok(Some(call)) => self.run(&call).await,
            Ok(None) => true,
            Err(text) => {
                self.tell(Failure::Told(text), None);
                false
            }
        }
    }

    /// One command; answers whether all went well.
    pub(crate) async fn run(self: &Rc<Self>, call: &Call) -> bool {
        let result = match self.check(call) {
            Ok(()) => (call.command.run)(self, call).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => true,
            Err(failure) => {
                self.tell(failure, Some(call));
                false
            }
        }
    }

    /// What holds for all commands, in QEMU's order.
    fn check(&self, call: &Call) -> Outcome {
        let needs = call.command.needs;
        let disk = self.find_disk();
        if needs != Needs::Nothing && disk.is_none() {
            return Err(Failure::Told("no file open, try 'help open'".into()));
        }
        call.check_count().map_err(Failure::Told)?;
        if matches!(needs, Needs::Writing | Needs::Resizing) {
            if !disk.is_some_and(|disk| disk.is_writable()) {
                return Err(Failure::Error(GraphError::ReadOnly.to_string()));
            }
            if let Place::Program(program) = &self.place {
                program.claim_writing();
            }
        }
        Ok(())
    }

    /// Says why a command failed, where QEMU says it.
    pub(crate) fn tell(&self, failure: Failure, call: Option<&Call>) {
        let usage = call.map(|call| call.command.usage()).unwrap_or_default();
        match failure {
            Failure::Said(text) => self.out.line(&text),
            Failure::Told(text) => self.out.complain(&text),
            Failure::Error(text) => self.report(&text),
            Failure::Option(unusable) => {
                self.out.complain(&unusable.to_string());
                self.out.line(&usage);
            }
            Failure::Usage => self.out.line(&usage),
            Failure::Silent => {}
        }
    }

    /// An error of the program, or in the monitor's reply.
    fn report(&self, text: &str) {
        match &self.place {
            Place::Program(program) => program.complain(text),
            Place::Monitor(lent) => lent.reply(text),
        }
    }

    /// Prints warnings.
    pub(crate) fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.report(warning);
        }
    }

    fn find_disk(&self) -> Option<Rc<Disk>> {
        match &self.place {
            Place::Program(program) => program.disk(),
            Place::Monitor(lent) => Some(lent.disk()),
        }
    }

    /// The disk, for commands that need one.
    pub(crate) fn disk(&self) -> Rc<Disk> {
        self.find_disk()
            .expect("the caller has looked for an image")
    }

    /// Gives the disk another size.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn truncate(&self, size: u64, mode: Preallocation) -> Result<(), String> {
        if size > SIZE_MAX {
            return Err(format!("offset({size}) exceeds maximum({SIZE_MAX})"));
        }
        let resized = match &self.place {
            Place::Program(program) => program.resize(&self.shard, size, mode).await,
            Place::Monitor(lent) => lent.resize(size, mode).await,
        };
        resized.map_err(open::reason)?;
        self.disk().after_resize().await.map_err(error_text)
    }

    /// What has been put into the reply of a monitor.
    pub(crate) fn take_reply(&self) -> String {
        match &self.place {
            Place::Program(_) => String::new(),
            Place::Monitor(lent) => lent.take_reply(),
        }
    }

    /// Counts a request that works beside the commands.
    pub(crate) fn begin(&self) -> InFlight {
        self.requests.begin()
    }
}
