//! The session of the program: an image that is opened and closed, command lines
//! from its options or from standard input.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, IsTerminal};
use std::rc::Rc;

use ringback_block::graph::GraphError;
use ringback_block::request::Preallocation;
use ringback_ring::Shard;

use super::args::{self, Args, Names};
use super::commands::{Failure, Outcome};
use super::disk::Disk;
use super::image::{Changes, Image};
use super::options::Options;
use super::output::{Output, complain};
use super::shell::{Place, Shell};
use crate::open::Objects;

/// Longer lines of input are cut into several.
const LINE_BYTES: usize = 1023;

/// What only the program has.
pub(crate) struct Program {
    /// Images are named by options.
    pub(crate) image_opts: bool,
    /// Buffers lie beside the alignment of memory.
    pub(crate) misalign: bool,
    /// Options of a `reopen` that was refused: the next one has them too.
    pub(crate) reopen_options: RefCell<Options>,
    name: String,
    objects: Objects,
    /// None while a command changes it, too.
    image: RefCell<Option<Image>>,
    quitting: Cell<bool>,
}

/// The whole session. Answers whether everything went well.
pub(crate) async fn run(shard: Shard, names: Names, args: Args) -> bool {
    let program = Program {
        image_opts: args.image_opts,
        misalign: args.misalign,
        reopen_options: RefCell::default(),
        name: names.program,
        objects: args.objects,
        image: RefCell::default(),
        quitting: Cell::new(false),
    };
    let shell = Rc::new(Shell::new(
        shard,
        Output::new(),
        Place::Program(Box::new(program)),
    ));
    let program = shell.program();
    if let Some(image) = args.image
        && let Err(failure) = program.open(&shell, image).await
    {
        shell.tell(failure, None);
        return false;
    }
    let is_well = if args.commands.is_empty() {
        program.ask(&shell).await
    } else {
        program.run_all(&shell, &args.commands).await
    };
    program.close(&shell).await;
    shell.out.flush();
    is_well
}

impl Program {
    async fn run_all(&self, shell: &Rc<Shell>, commands: &[String]) -> bool {
        let mut is_well = true;
        for command in commands {
            is_well &= shell.command(command).await;
            if self.quitting.get() {
                break;
            }
        }
        is_well
    }

    /// Lines of standard input.
    async fn ask(&self, shell: &Rc<Shell>) -> bool {
        let mut is_well = true;
        while !self.quitting.get() {
            shell.out.print(&format!("{}> ", self.name));
            shell.out.flush();
            let Some(line) = shell.shard.blocking(read_line).await else {
                if std::io::stdin().is_terminal() {
                    shell.out.print("\n");
                }
                break;
            };
            is_well &= shell.command(&line).await;
        }
        is_well
    }

    /// A line on standard error, behind the name.
    pub(crate) fn complain(&self, text: &str) {
        complain(&format!("{}: {text}", self.name));
    }

    /// The open image's disk.
    pub(crate) fn disk(&self) -> Option<Rc<Disk>> {
        self.image.borrow().as_ref().map(Image::disk)
    }

    /// The user has asked to write.
    pub(crate) fn claim_writing(&self) {
        if let Some(image) = self.image.borrow_mut().as_mut() {
            image.claim_writing();
        }
    }

    /// Opens an image, if there is none yet.
    pub(crate) async fn open(&self, shell: &Shell, mut image: args::Image) -> Outcome {
        if self.disk().is_some() {
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
        let (objects, options) = (&self.objects, &image.options);
        match Image::open(&shell.shard, objects, name, options, image.flags).await {
            Ok(image) => {
                *self.image.borrow_mut() = Some(image);
                Ok(())
            }
            Err(error) => Err(Failure::Error(match name {
                Some(name) => format!("can't open device {name}: {error}"),
                None => format!("can't open: {error}"),
            })),
        }
    }

    fn take(&self) -> Option<Image> {
        self.image.borrow_mut().take()
    }

    /// Closes the image, if there is one, after its requests.
    pub(crate) async fn close(&self, shell: &Shell) {
        shell.requests.drain().await;
        if let Some(image) = self.take() {
            image.close(&shell.shard).await;
        }
    }

    /// Opens the image in another way, after its requests.
    pub(crate) async fn reopen(&self, shell: &Shell, changes: &Changes) -> Outcome {
        shell.requests.drain().await;
        let Some(image) = self.take() else {
            return Ok(());
        };
        let (image, result) = image.reopen(&shell.shard, changes).await;
        *self.image.borrow_mut() = image;
        result.map_err(Failure::Error)
    }

    /// Gives the image another size.
    pub(crate) async fn resize(
        &self,
        shard: &Shard,
        size: u64,
        mode: Preallocation,
    ) -> Result<(), GraphError> {
        let Some(mut image) = self.take() else {
            return Ok(());
        };
        let result = image.resize(shard, size, mode).await;
        *self.image.borrow_mut() = Some(image);
        result
    }

    /// The session ends after this command.
    pub(crate) fn quit(&self) {
        self.quitting.set(true);
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
