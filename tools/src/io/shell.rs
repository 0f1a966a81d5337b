//! Runs commands: one after the other, on one shard. What works beside them
//! (`aio_read`, `aio_write`) are tasks of the same shard, which go on whenever a
//! command waits for something.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, IsTerminal};
use std::rc::Rc;

use ringback_ring::{LocalQueue, Shard};

use super::args::{Args, Image, Names};
use super::commands::{self, Call, Failure, Needs, Outcome};
use super::disk::{Disk, Object};
use super::options::Options;
use super::output::{Output, complain};

/// Longer lines of input are cut into several.
const LINE_BYTES: usize = 1023;

/// What commands work on.
pub(crate) struct Shell {
    pub(crate) shard: Shard,
    pub(crate) out: Output,
    pub(crate) image_opts: bool,
    pub(crate) misalign: bool,
    /// Options of a `reopen` that was refused: the next one has them too.
    pub(crate) reopen_options: RefCell<Options>,
    program: String,
    objects: Vec<Object>,
    disk: RefCell<Option<Rc<Disk>>>,
    /// Requests that work beside the commands.
    in_flight: Cell<usize>,
    ended: LocalQueue,
    quitting: Cell<bool>,
}

/// A request beside the commands, until dropped.
pub(crate) struct InFlight(Rc<Shell>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.ended.wake_all();
    }
}

impl Shell {
    /// The whole session. Answers whether everything went well.
    pub(crate) async fn run(shard: Shard, names: Names, args: Args) -> bool {
        let shell = Rc::new(Self {
            shard,
            out: Output::new(),
            image_opts: args.image_opts,
            misalign: args.misalign,
            reopen_options: RefCell::default(),
            program: names.program,
            objects: args.objects,
            disk: RefCell::default(),
            in_flight: Cell::new(0),
            ended: LocalQueue::new(),
            quitting: Cell::new(false),
        });
        if let Some(image) = args.image
            && let Err(failure) = shell.open(image).await
        {
            shell.tell(failure, None);
            return false;
        }
        let is_well = if args.commands.is_empty() {
            shell.ask().await
        } else {
            shell.run_all(&args.commands).await
        };
        shell.close().await;
        shell.out.flush();
        is_well
    }

    async fn run_all(self: &Rc<Self>, commands: &[String]) -> bool {
        let mut is_well = true;
        for command in commands {
            is_well &= self.command(command).await;
            if self.quitting.get() {
                break;
            }
        }
        is_well
    }

    /// Lines of standard input.
    async fn ask(self: &Rc<Self>) -> bool {
        let mut is_well = true;
        while !self.quitting.get() {
            self.out.print(&format!("{}> ", self.program));
            self.out.flush();
            let Some(line) = self.shard.blocking(read_line).await else {
                if std::io::stdin().is_terminal() {
                    self.out.print("\n");
                }
                break;
            };
            is_well &= self.command(&line).await;
        }
        is_well
    }

    /// One command line. Words are separated by blanks; nothing is quoted.
    async fn command(self: &Rc<Self>, line: &str) -> bool {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let Some(word) = words.next() else {
            return true;
        };
        let arguments: Vec<String> = words.map(str::to_owned).collect();
        let Some(command) = commands::find(word) else {
            complain(&format!("command \"{word}\" not found"));
            return false;
        };
        let call = Call {
            command,
            word: word.into(),
            arguments,
        };
        let result = match self.check(&call) {
            Ok(()) => (call.command.run)(self, &call).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => true,
            Err(failure) => {
                self.tell(failure, Some(&call));
                false
            }
        }
    }

    /// What holds for all commands, in QEMU's order.
    fn check(&self, call: &Call) -> Outcome {
        let command = call.command;
        if command.needs != Needs::Nothing && self.disk.borrow().is_none() {
            return Err(Failure::Told("no file open, try 'help open'".into()));
        }
        call.check_count().map_err(Failure::Told)?;
        if command.needs == Needs::Writing {
            self.disk().claim_writing().map_err(Failure::Error)?;
        }
        Ok(())
    }

    fn tell(&self, failure: Failure, call: Option<&Call>) {
        let usage = call.map(|call| call.command.usage()).unwrap_or_default();
        match failure {
            Failure::Said(text) => self.out.line(&text),
            Failure::Told(text) => complain(&text),
            Failure::Error(text) => complain(&format!("{}: {text}", self.program)),
            Failure::Option(unusable) => {
                complain(&unusable.to_string());
                self.out.line(&usage);
            }
            Failure::Usage => self.out.line(&usage),
            Failure::Silent => {}
        }
    }

    /// Prints warnings.
    pub(crate) fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            complain(&format!("{}: {warning}", self.program));
        }
    }

    /// The open image, for commands that need one.
    pub(crate) fn disk(&self) -> Rc<Disk> {
        let disk = self.disk.borrow();
        Rc::clone(disk.as_ref().expect("the caller has looked for an image"))
    }

    /// Opens an image, if there is none yet.
    pub(crate) async fn open(&self, mut image: Image) -> Outcome {
        if self.disk.borrow().is_some() {
            let text = "file open already, try 'help close'";
            return Err(Failure::Error(text.into()));
        }
        if image.flags.force_share
            && let Some(value) = image.options.take("force-share")
            && value != "on"
        {
            return Err(Failure::Error("-U conflicts with image options".into()));
        }
        let name = image.name.as_deref();
        let opened = Disk::open(
            &self.shard,
            &self.out,
            &self.objects,
            name,
            image.options,
            image.flags,
        )
        .await;
        match opened {
            Ok(disk) => {
                *self.disk.borrow_mut() = Some(Rc::new(disk));
                Ok(())
            }
            Err(error) => Err(Failure::Error(match name {
                Some(name) => format!("can't open device {name}: {error}"),
                None => format!("can't open: {error}"),
            })),
        }
    }

    /// Closes the image, if there is one, after its requests.
    pub(crate) async fn close(&self) {
        self.drain().await;
        let disk = self.disk.borrow_mut().take();
        if let Some(disk) = disk {
            disk.close().await;
        }
    }

    /// The session ends after this command.
    pub(crate) fn quit(&self) {
        self.quitting.set(true);
    }

    /// Counts a request that works beside the commands.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    /// Waits until no such request is left.
    pub(crate) async fn drain(&self) {
        self.ended.wait_until(|| self.in_flight.get() == 0).await;
    }
}

/// A line of standard input, or the first part of a long one. None at its end.
fn read_line() -> Option<String> {
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    while line.len() < LINE_BYTES {
        let Ok(available) = input.fill_buf() else {
            break;
        };
        let room = LINE_BYTES - line.len();
        let available = &available[..available.len().min(room)];
        if available.is_empty() {
            break;
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let used = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..used]);
        input.consume(used);
        if end.is_some() {
            break;
        }
    }
    if line.is_empty() {
        return None;
    }
    if line.ends_with(b"\n") {
        line.pop();
    }
    Some(String::from_utf8_lossy(&line).into_owned())
}
