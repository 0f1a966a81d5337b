//! The command line of the program.

use super::getopt::{Getopt, Long, Syntax, Value};
use super::image::OpenFlags;
use super::options::{CacheMode, Options, aio_is_native, discard_mode};
use super::output::complain;
use crate::open::Objects;

const OBJECT: char = '\u{1}';
const IMAGE_OPTS: char = '\u{2}';

const fn long(name: &'static str, value: Value, letter: char) -> Long {
    Long {
        name,
        value,
        letter,
    }
}

const SYNTAX: Syntax = Syntax {
    letters: "hVc:d:f:rsnCmki:t:T:U",
    long: &[
        long("help", Value::None, 'h'),
        long("version", Value::None, 'V'),
        long("cmd", Value::Required, 'c'),
        long("format", Value::Required, 'f'),
        long("read-only", Value::None, 'r'),
        long("snapshot", Value::None, 's'),
        long("nocache", Value::None, 'n'),
        long("copy-on-read", Value::None, 'C'),
        long("misalign", Value::None, 'm'),
        long("native-aio", Value::None, 'k'),
        long("aio", Value::Required, 'i'),
        long("discard", Value::Required, 'd'),
        long("cache", Value::Required, 't'),
        long("trace", Value::Required, 'T'),
        long("force-share", Value::None, 'U'),
        long("object", Value::Required, OBJECT),
        long("image-opts", Value::None, IMAGE_OPTS),
    ],
};

/// The names under which the program speaks.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// As it was called: begins messages about options.
    pub(crate) called: String,
    /// Begins other messages, and is the prompt.
    pub(crate) program: String,
}

/// An image that is to be open from the start.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) name: Option<String>,
    pub(crate) options: Options,
    pub(crate) flags: OpenFlags,
}

/// A command line that makes sense.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    pub(crate) image: Option<Image>,
    /// Without any the shell asks for them.
    pub(crate) commands: Vec<String>,
    pub(crate) objects: Objects,
    /// Images are named by options, also later.
    pub(crate) image_opts: bool,
    /// Buffers lie beside the alignment of memory.
    pub(crate) misalign: bool,
}

/// What a command line asks for.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Run(Box<Args>),
    /// This text on standard output.
    Show(String),
}

/// Why it cannot be.
#[derive(Clone, Debug)]
pub(crate) enum Refusal {
    /// A line on standard error.
    Error(String),
    /// The same, without the name of the program, and how to use it.
    Option(String),
    /// How to use it.
    Usage,
}

#[derive(Default)]
struct Parsed {
    args: Args,
    format: Option<String>,
    flags: OpenFlags,
}

impl Args {
    /// Reads the words behind the program's name.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub(crate) fn parse(names: &Names, words: &[String]) -> Result<Request, Refusal> {
        let mut parsed = Parsed::default();
        let mut getopt = Getopt::new(&names.called, SYNTAX, words);
        loop {
            let given = match getopt.next() {
                Ok(Some(given)) => given,
                Ok(None) => break,
                Err(unusable) => return Err(Refusal::Option(unusable.to_string())),
            };
            let letter = given.letter;
            if let Some(text) = parsed.option(names, letter, given.value())? {
                return Ok(Request::Show(text));
            }
        }
        parsed.finish(names, getopt.others())
    }
}

impl Parsed {
    /// A text: it is all that is asked for.
    fn option(
        &mut self,
        names: &Names,
        letter: char,
        value: String,
    ) -> Result<Option<String>, Refusal> {
        let flags = &mut self.flags;
        match letter {
            'h' => return Ok(Some(usage(&names.program))),
            'V' => return Ok(Some(version(&names.program))),
            'c' => self.args.commands.push(value),
            'f' => self.format = Some(value),
            'r' => flags.read_only = true,
            's' => flags.snapshot = true,
            'n' => flags.cache = CacheMode::parse("none").map_err(Refusal::Error)?,
            'C' => flags.copy_on_read = true,
            'm' => self.args.misalign = true,
            'k' => flags.native_aio = true,
            'i' => flags.native_aio |= aio_is_native(&value).map_err(Refusal::Error)?,
            'd' => flags.discard = discard_mode(&value).map_err(Refusal::Error)?,
            't' => flags.cache = CacheMode::parse(&value).map_err(Refusal::Error)?,
            'U' => flags.force_share = true,
            'T' => return trace(names, &value),
            OBJECT => {
                self.args.objects.add(&value).map_err(Refusal::Error)?;
            }
            IMAGE_OPTS => self.args.image_opts = true,
            _ => return Err(Refusal::Usage),
        }
        Ok(None)
    }

    fn finish(mut self, names: &Names, mut others: Vec<String>) -> Result<Request, Refusal> {
        if others.len() > 1 {
            return Err(Refusal::Usage);
        }
        if self.args.image_opts && self.format.is_some() {
            return Err(Refusal::Error(
                "--image-opts and -f are mutually exclusive".into(),
            ));
        }
        if let Some(word) = others.pop() {
            let mut options = Options::default();
            let name = if self.args.image_opts {
                for warning in options.add(&word) {
                    complain(&format!("{}: {warning}", names.program));
                }
                None
            } else {
                if let Some(format) = &self.format {
                    options.set("driver", format);
                }
                Some(word)
            };
            self.args.image = Some(Image {
                name,
                options,
                flags: self.flags,
            });
        }
        Ok(Request::Run(Box::new(self.args)))
    }
}

/// `[enable=]PATTERN,events=FILE,file=FILE`. There are no trace events: each
/// name that is asked for is one that does not exist.
fn trace(names: &Names, text: &str) -> Result<Option<String>, Refusal> {
    let mut patterns = Vec::new();
    for (index, part) in text.split(',').enumerate() {
        match part.split_once('=') {
            Some(("enable", pattern)) => patterns.push(pattern.to_owned()),
            Some(("events", file)) => {
                let lines = std::fs::read_to_string(file)
                    .map_err(|error| Refusal::Error(format!("{file}: {error}")))?;
                patterns.extend(lines.lines().map(str::to_owned));
            }
            Some(("file", _)) => {
                return Err(Refusal::Error(
                    "there are no traces to put in a file".into(),
                ));
            }
            None if index == 0 => patterns.push(part.to_owned()),
            Some((key, _)) => return Err(Refusal::Error(format!("Invalid parameter '{key}'"))),
            None => return Err(Refusal::Error(format!("Invalid parameter '{part}'"))),
        }
    }
    for pattern in patterns {
        if pattern == "help" || pattern == "?" {
            return Ok(Some(String::new()));
        }
        if !pattern.contains('*') && !pattern.is_empty() && !pattern.starts_with('#') {
            complain(&format!(
                "{}: warning: trace event '{pattern}' does not exist",
                names.program
            ));
        }
    }
    Ok(None)
}

fn version(program: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    format!("{program} version 10.0.2 (ringback {own})\n")
}

/// How to use the program.
pub(crate) fn usage(program: &str) -> String {
    format!(
        "Usage: {program} [OPTIONS]... [-c STRING]... [file]
Reads, writes and changes a disk image by commands

  --object OBJECT        define an object: throttle-group or tls-creds-x509
  --image-opts           the image is given by options of its drivers
  -c, --cmd STRING       run this command; may be repeated
  -f, --format FMT       the image's format; else it is guessed
  -r, --read-only        open it for reading only
  -s, --snapshot         write to an overlay that is thrown away
  -n, --nocache          bypass the page cache; the same as -t none
  -C, --copy-on-read     keep what is read from backing files
  -m, --misalign         use buffers beside the alignment of memory
  -k, --native-aio       the same as -i native
  -i, --aio=MODE         threads, native or io_uring; io_uring does the work
  -t, --cache=MODE       none, directsync, writeback, writethrough or unsafe
  -d, --discard=MODE     ignore or unmap
  -T, --trace PATTERN    trace events
  -U, --force-share      take no locks; needs -r
  -h, --help             show this text
  -V, --version          show the version

`{program} -c help` lists the commands.
"
    )
}
