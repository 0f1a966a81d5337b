//! The table of commands: names, how many arguments, what they need, one line
//! about each. A file a family.

mod aio;
mod breakpoint;
mod image;
mod memory;
mod metadata;
mod process;
mod transfer;
mod zone;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use ringback_ring::Errno;

use super::getopt::{Getopt, Syntax, Unusable};
use super::number::{self, SizeError};
use super::shell::Shell;
use ringback_ring::error_text;

/// Why a command failed, and where that is said.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// A line on standard output.
    Said(String),
    /// A line on standard error.
    Told(String),
    /// The same, behind the name of the program.
    Error(String),
    /// An option: a line on standard error, and how to use the command.
    Option(Unusable),
    /// How to use the command, on standard output.
    Usage,
    /// All has been said.
    Silent,
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::Option(unusable)
    }
}

impl Failure {
    /// `WHAT failed: WHY` on standard output.
    fn failed(what: &str, errno: Errno) -> Self {
        Self::Said(format!("{what} failed: {}", error_text(errno)))
    }
}

/// How a command ended.
pub(crate) type Outcome = Result<(), Failure>;

/// What must be there before a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// An open image.
    Image,
    /// One that may be written.
    Writing,
    /// One whose size may be changed.
    Resizing,
}

type Run = for<'a> fn(&'a Rc<Shell>, &'a Call) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A command of the shell.
pub(crate) struct Command {
    name: &'static str,
    alias: Option<&'static str>,
    /// `map` alone has an empty text here, and scripts see its blank.
    arguments: Option<&'static str>,
    one_line: &'static str,
    /// More about it, if there is more.
    help: &'static str,
    /// How many arguments, options included.
    min: usize,
    max: Option<usize>,
    pub(crate) needs: Needs,
    /// A monitor, whose nodes are not opened by commands, has it, too.
    in_monitor: bool,
    pub(crate) run: Run,
}

/// What most commands have, to be spread into one.
const PLAIN: Command = Command {
    name: "",
    alias: None,
    arguments: None,
    one_line: "",
    help: "",
    min: 0,
    max: Some(0),
    needs: Needs::Image,
    in_monitor: true,
    run: |_, _| Box::pin(async { Ok(()) }),
};

/// Sorted by name.
static COMMANDS: &[Command] = &[
    process::ABORT,
    aio::AIO_FLUSH,
    aio::AIO_READ,
    aio::AIO_WRITE,
    metadata::ALLOC,
    breakpoint::BREAK,
    image::CLOSE,
    transfer::DISCARD,
    transfer::FLUSH,
    process::HELP,
    metadata::INFO,
    metadata::LENGTH,
    metadata::MAP,
    image::OPEN,
    process::QUIT,
    transfer::READ,
    transfer::READV,
    breakpoint::REMOVE_BREAK,
    image::REOPEN,
    breakpoint::RESUME,
    process::SIGRAISE,
    process::SLEEP,
    metadata::TRUNCATE,
    breakpoint::WAIT_BREAK,
    transfer::WRITE,
    transfer::WRITEV,
    zone::APPEND,
    zone::CLOSE,
    zone::FINISH,
    zone::OPEN,
    zone::REPORT,
    zone::RESET,
];

/// All that there are here.
fn known(in_monitor: bool) -> impl Iterator<Item = &'static Command> {
    let all = COMMANDS.iter();
    all.filter(move |command| command.in_monitor || !in_monitor)
}

/// By name or alias.
fn find(word: &str, in_monitor: bool) -> Option<&'static Command> {
    known(in_monitor).find(|command| command.name == word || command.alias == Some(word))
}

impl Command {
    /// The line that says how to use it.
    pub(crate) fn usage(&self) -> String {
        self.usage_as(self.name)
    }

    fn usage_as(&self, name: &str) -> String {
        match self.arguments {
            Some(arguments) => format!("{name} {arguments} -- {}", self.one_line),
            None => format!("{name} -- {}", self.one_line),
        }
    }
}

/// A command as it was given.
pub(crate) struct Call {
    pub(crate) command: &'static Command,
    /// Its name or alias.
    pub(crate) word: String,
    pub(crate) arguments: Vec<String>,
}

impl Call {
    /// Finds the command of a line. Words are separated by blanks; nothing is
    /// quoted. None: there is no word.
    ///
    /// # Errors
    ///
    /// The line that says that there is no such command here.
    pub(crate) fn parse(line: &str, in_monitor: bool) -> Result<Option<Self>, String> {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let Some(word) = words.next() else {
            return Ok(None);
        };
        let Some(command) = find(word, in_monitor) else {
            return Err(format!("command \"{word}\" not found"));
        };
        Ok(Some(Self {
            command,
            word: word.into(),
            arguments: words.map(str::to_owned).collect(),
        }))
    }

    /// # Errors
    ///
    /// The line that says how many arguments there should be.
    pub(crate) fn check_count(&self) -> Result<(), String> {
        let Command { min, max, .. } = *self.command;
        let count = self.arguments.len();
        if count >= min && max.is_none_or(|max| count <= max) {
            return Ok(());
        }
        let expected = match max {
            None => format!("expected at least {min} arguments"),
            Some(max) if max == min => format!("expected {min} arguments"),
            Some(max) => format!("expected between {min} and {max} arguments"),
        };
        Err(format!(
            "bad argument count {count} to {}, {expected}",
            self.word
        ))
    }

    fn getopt(&self, letters: &'static str) -> Getopt<'_> {
        Getopt::new(&self.word, Syntax::letters(letters), &self.arguments)
    }
}

/// A size, or the line that blames the argument.
fn size(argument: &str) -> Result<u64, Failure> {
    number::size(argument).map_err(|error| bad_size(error, argument))
}

fn bad_size(error: SizeError, argument: &str) -> Failure {
    Failure::Said(error.line(argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_no_name_twice() {
        assert!(COMMANDS.is_sorted_by_key(|command| command.name));
        let mut names: Vec<_> = COMMANDS
            .iter()
            .flat_map(|command| [Some(command.name), command.alias])
            .flatten()
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(find("r", true).expect("an alias").name, "read");
        assert!(find("", false).is_none());
    }

    #[test]
    fn a_monitor_does_not_open_close_or_quit() {
        for word in ["open", "o", "close", "c", "quit", "q"] {
            assert!(find(word, true).is_none());
            assert!(find(word, false).is_some());
        }
        let missing = COMMANDS.len() - known(true).count();
        assert_eq!(missing, 3);
    }

    fn count(word: &str, arguments: usize) -> Result<(), String> {
        let call = Call {
            command: find(word, false).expect("a command"),
            word: word.into(),
            arguments: vec![String::new(); arguments],
        };
        call.check_count()
    }

    #[test]
    fn arguments_are_counted_under_the_name_that_was_used() {
        assert_eq!(
            count("r", 1).expect_err("too few"),
            "bad argument count 1 to r, expected at least 2 arguments"
        );
        assert_eq!(
            count("truncate", 4).expect_err("too many"),
            "bad argument count 4 to truncate, expected between 1 and 3 arguments"
        );
        assert_eq!(
            count("map", 1).expect_err("too many"),
            "bad argument count 1 to map, expected 0 arguments"
        );
        assert_eq!(count("read", 100), Ok(()));
    }

    #[test]
    fn usage_has_a_blank_where_scripts_see_one() {
        let usage = |name| find(name, false).expect("a command").usage();
        assert!(usage("map").starts_with("map  -- "));
        assert!(usage("info").starts_with("info -- "));
        assert!(usage("r").starts_with("read [-abCqrv] "));
    }
}
