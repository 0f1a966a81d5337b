//! Lines of QEMU's human monitor, as far as `human-monitor-command` takes them:
//! which command, with which arguments, or what is wrong.
//!
//! Words are separated by white space. An argument in double quotes may have
//! blanks, and the escapes `\n`, `\r`, `\\`, `\"`, `\'`; a quote inside a word is
//! an ordinary character. Options (`-d`) stand before the other arguments, each
//! in a word of its own or right before what follows it.

use std::fmt::Write;

use ringback_qmp_shim::size::parse_size;

/// A line that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Nothing but blanks: no reply.
    Empty,
    /// `qemu-io [-d] NAME "COMMAND"`.
    QemuIo {
        /// The name is that of a device, not of a drive or node.
        by_device: bool,
        name: String,
        command: String,
    },
    /// `info block [-n] [-v] [NAME]`.
    InfoBlock {
        /// Named nodes rather than devices.
        nodes: bool,
        /// Details.
        verbose: bool,
        name: Option<String>,
    },
    /// `info block-jobs`.
    InfoBlockJobs,
    /// `block_resize NAME SIZE`.
    BlockResize {
        /// A drive or node.
        name: String,
        /// In bytes; a number without a suffix is one of mebibytes.
        size: u64,
    },
    /// `commit NAME`.
    Commit {
        /// A device, or `all`.
        name: String,
    },
    /// `help`, and `info` alone: this is the reply.
    Help(String),
}

/// A line that does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// A line for standard output, without its end.
    pub(crate) said: Option<String>,
    /// The reply.
    pub(crate) reply: String,
}

/// What the monitor knows of a command.
struct Entry {
    name: &'static str,
    alias: Option<&'static str>,
    /// As `help` shows them.
    arguments: &'static str,
    help: &'static str,
}

const QEMU_IO: Entry = Entry {
    name: "qemu-io",
    alias: None,
    arguments: "[-d] [device] \"[command]\"",
    help: "run a qemu-io command on a block device\r\n\t\t\t-d: [device] is a device ID rather \
           than a drive ID or node name",
};

const COMMIT: Entry = Entry {
    name: "commit",
    alias: None,
    arguments: "device|all",
    help: "commit changes to the disk images (if -snapshot is used) or backing files",
};

const BLOCK_RESIZE: Entry = Entry {
    name: "block_resize",
    alias: None,
    arguments: "device size",
    help: "resize a block image",
};

const HELP: Entry = Entry {
    name: "help",
    alias: Some("?"),
    arguments: "[cmd]",
    help: "show the help",
};

const INFO: Entry = Entry {
    name: "info",
    alias: None,
    arguments: "[subcommand]",
    help: "show various information about the system state",
};

const INFO_BLOCK: Entry = Entry {
    name: "block",
    alias: None,
    arguments: "[-n] [-v] [device]",
    help: "show info of one block device or all block devices (-n: show named nodes; -v: show \
           details)",
};

const INFO_BLOCK_JOBS: Entry = Entry {
    name: "block-jobs",
    alias: None,
    arguments: "",
    help: "show progress of ongoing block device operations",
};

/// Sorted by name, as `help` shows them.
const COMMANDS: &[Entry] = &[BLOCK_RESIZE, COMMIT, HELP, INFO, QEMU_IO];
const INFOS: &[Entry] = &[INFO_BLOCK, INFO_BLOCK_JOBS];

/// Between words.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// Reads a line.
///
/// # Errors
///
/// [`Refusal`].
pub(crate) fn parse(line: &str) -> Result<Line, Refusal> {
    let (word, rest) = split_name(line);
    match word {
        "" => Ok(Line::Empty),
        "qemu-io" => {
            let mut arguments = Arguments::new(rest, "qemu-io", "qemu-io");
            let by_device = arguments.flag("d")?;
            let name = arguments.string("block device name expected")?;
            let command = arguments.string("string expected")?;
            arguments.end()?;
            Ok(Line::QemuIo {
                by_device,
                name,
                command,
            })
        }
        "info" => info(rest),
        "block_resize" => {
            let mut arguments = Arguments::new(rest, "block_resize", "block_resize");
            let name = arguments.string("block device name expected")?;
            let size = arguments.string("invalid size")?;
            let size = mebibytes(&size).ok_or_else(|| arguments.refusal("invalid size"))?;
            arguments.end()?;
            Ok(Line::BlockResize { name, size })
        }
        "commit" => {
            let mut arguments = Arguments::new(rest, "commit", "commit");
            let name = arguments.string("block device name expected")?;
            arguments.end()?;
            Ok(Line::Commit { name })
        }
        "help" | "?" => help(rest),
        word => Err(unknown(word)),
    }
}

/// A size; without a suffix it is one of mebibytes.
fn mebibytes(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let size = parse_size(text).ok()?;
    if is_plain {
        size.checked_mul(1 << 20)
    } else {
        Some(size)
    }
}

/// The name of a command, and what follows it. It ends at a blank or a slash.
fn split_name(line: &str) -> (&str, &str) {
    let line = line.trim_start_matches(is_blank);
    let end = line.find(|c| is_blank(c) || c == '/');
    line.split_at(end.unwrap_or(line.len()))
}

fn info(rest: &str) -> Result<Line, Refusal> {
    let (word, rest) = split_name(rest);
    match word {
        "" => Ok(Line::Help(list("info ", INFOS))),
        "block" => {
            let mut arguments = Arguments::new(rest, "block", "info block");
            let nodes = arguments.flag("nv")?;
            let verbose = arguments.flag("v")?;
            let name = if arguments.is_at_end() {
                None
            } else {
                Some(arguments.string("invalid block device name")?)
            };
            arguments.end()?;
            Ok(Line::InfoBlock {
                nodes,
                verbose,
                name,
            })
        }
        "block-jobs" => {
            Arguments::new(rest, "block-jobs", "info block-jobs").end()?;
            Ok(Line::InfoBlockJobs)
        }
        word => Err(unknown(&format!("info {word}"))),
    }
}

/// `help`, `help NAME`, `help info NAME`. Further words do not count.
fn help(rest: &str) -> Result<Line, Refusal> {
    let mut arguments = Arguments::new(rest, "help", "help");
    let mut word = || {
        if arguments.is_at_end() {
            Ok(None)
        } else {
            arguments.string("string expected").map(Some)
        }
    };
    let Some(name) = word()? else {
        return Ok(Line::Help(list("", COMMANDS)));
    };
    let entry = find(COMMANDS, &name).ok_or_else(|| unknown(&name))?;
    if entry.name != INFO.name {
        return Ok(Line::Help(list("", std::slice::from_ref(entry))));
    }
    let Some(name) = word()? else {
        return Ok(Line::Help(list("info ", INFOS)));
    };
    let entry = find(INFOS, &name).ok_or_else(|| unknown(&format!("info {name}")))?;
    Ok(Line::Help(list("info ", std::slice::from_ref(entry))))
}

fn find<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let mut entries = entries.iter();
    entries.find(|entry| entry.name == name || entry.alias == Some(name))
}

fn list(before: &str, entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let alias = entry.alias.map(|alias| format!("|{alias}"));
        let _ = write!(
            text,
            "{before}{}{} {} -- {}\r\n",
            entry.name,
            alias.unwrap_or_default(),
            entry.arguments,
            entry.help
        );
    }
    text
}

fn unknown(name: &str) -> Refusal {
    Refusal {
        said: None,
        reply: format!("unknown command: '{}'\r\n", name.replace('\n', "\r\n")),
    }
}

/// What follows the name of a command.
struct Arguments<'a> {
    rest: &'a str,
    /// Stands before what is wrong.
    name: &'static str,
    /// What `help` is to be asked for.
    full_name: &'static str,
}

impl<'a> Arguments<'a> {
    fn new(rest: &'a str, name: &'static str, full_name: &'static str) -> Self {
        Self {
            rest,
            name,
            full_name,
        }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches(is_blank);
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest.is_empty()
    }

    fn refusal(&self, what: &str) -> Refusal {
        let Self {
            name, full_name, ..
        } = self;
        Refusal {
            said: None,
            reply: format!("{name}: {what}\r\nTry \"help {full_name}\" for more information\r\n"),
        }
    }

    /// Whether the first of these options comes next; the others may come later.
    fn flag(&mut self, letters: &str) -> Result<bool, Refusal> {
        self.skip_blanks();
        let Some(rest) = self.rest.strip_prefix('-') else {
            return Ok(false);
        };
        let given = rest.chars().next();
        match given.and_then(|given| letters.find(given)) {
            Some(0) => {
                self.rest = &rest[1..];
                Ok(true)
            }
            Some(_) => Ok(false),
            None => {
                let given = given.map(String::from).unwrap_or_default();
                Err(self.refusal(&format!("unsupported option -{given}")))
            }
        }
    }

    /// A word, or what stands in quotes. `missing` is the complaint if there is
    /// none that can be read.
    fn string(&mut self, missing: &str) -> Result<String, Refusal> {
        self.skip_blanks();
        if self.rest.is_empty() {
            return Err(self.refusal(missing));
        }
        let read = match self.rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = self.rest.find(is_blank).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                Ok((word.to_owned(), rest))
            }
        };
        let (text, rest) = read.map_err(|said| Refusal {
            said: Some(said),
            ..self.refusal(missing)
        })?;
        self.rest = rest;
        Ok(text)
    }

    fn end(&mut self) -> Result<(), Refusal> {
        if self.is_at_end() {
            Ok(())
        } else {
            Err(self.refusal("extraneous characters at the end of line"))
        }
    }
}

/// What stands before the closing quote, and what comes after it.
fn unquote(text: &str) -> Result<(String, &str), String> {
    let mut unquoted = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok((unquoted, chars.as_str())),
            '\\' => match chars.next() {
                Some('n') => unquoted.push('\n'),
                Some('r') => unquoted.push('\r'),
                Some(c @ ('\\' | '\'' | '"')) => unquoted.push(c),
                Some(c) => return Err(format!("unsupported escape code: '\\{c}'")),
                None => break,
            },
            c => unquoted.push(c),
        }
    }
    Err("unterminated string".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn qemu_io(by_device: bool, name: &str, command: &str) -> Result<Line, Refusal> {
        Ok(Line::QemuIo {
            by_device,
            name: name.into(),
            command: command.into(),
        })
    }

    fn refused(said: Option<&str>, reply: &str) -> Result<Line, Refusal> {
        Err(Refusal {
            said: said.map(str::to_owned),
            reply: reply.into(),
        })
    }

    /// All of them were asked of QEMU 10.0.2.
    #[test]
    fn lines_for_qemu_io() {
        for (line, by_device, name, command) in [
            (
                r#"qemu-io r "write -P0x49 0 64k""#,
                false,
                "r",
                "write -P0x49 0 64k",
            ),
            ("qemu-io -d r length", true, "r", "length"),
            ("qemu-io -dr length", true, "r", "length"),
            (r#"qemu-io "r" "length""#, false, "r", "length"),
            (r#"qemu-io "r"length"#, false, "r", "length"),
            ("   qemu-io   r   length   ", false, "r", "length"),
            ("qemu-io\tr\tlength", false, "r", "length"),
            ("qemu-io 'r' 'length'", false, "'r'", "'length'"),
            ("qemu-io r\"x length", false, "r\"x", "length"),
            (r#"qemu-io ro"" length"#, false, "ro\"\"", "length"),
            ("qemu-io r\\x20 length", false, "r\\x20", "length"),
            (
                r#"qemu-io "\n\r\\\"\'" length"#,
                false,
                "\n\r\\\"'",
                "length",
            ),
            (r#"qemu-io r """#, false, "r", ""),
            (r#"qemu-io "" length"#, false, "", "length"),
            (r#"qemu-io -d "" length"#, true, "", "length"),
            ("qemu-io/r length", false, "/r", "length"),
            ("qemu-io r length;quit", false, "r", "length;quit"),
            ("qemu-io r -", false, "r", "-"),
        ] {
            assert_eq!(parse(line), qemu_io(by_device, name, command), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_the_reply() {
        for (line, what) in [
            ("qemu-io", "block device name expected"),
            ("qemu-io -d", "block device name expected"),
            ("qemu-io r", "string expected"),
            ("qemu-io r\"", "string expected"),
            ("qemu-io -d r", "string expected"),
            (
                "qemu-io r write 0 512",
                "extraneous characters at the end of line",
            ),
            (
                "qemu-io r length -d",
                "extraneous characters at the end of line",
            ),
            (
                "qemu-io -d -d r length",
                "extraneous characters at the end of line",
            ),
            (
                "qemu-io -dx r length",
                "extraneous characters at the end of line",
            ),
            (
                "qemu-io \"-d\" r length",
                "extraneous characters at the end of line",
            ),
            ("qemu-io -x r length", "unsupported option -x"),
            ("qemu-io - r length", "unsupported option - "),
            ("qemu-io -- r length", "unsupported option --"),
            ("qemu-io -\u{fc} r length", "unsupported option -\u{fc}"),
            ("qemu-io -", "unsupported option -"),
        ] {
            let reply = format!("qemu-io: {what}\r\nTry \"help qemu-io\" for more information\r\n");
            assert_eq!(parse(line), refused(None, &reply), "{line}");
        }
    }

    #[test]
    fn a_string_that_cannot_be_read_is_told_on_standard_output() {
        for (line, said, what) in [
            ("qemu-io \"r", "unterminated string", "block device name"),
            ("qemu-io \"a\\", "unterminated string", "block device name"),
            ("qemu-io r \"length", "unterminated string", "string"),
            (
                r#"qemu-io "\t" length"#,
                "unsupported escape code: '\\t'",
                "block device name",
            ),
        ] {
            let reply = format!(
                "qemu-io: {what} expected\r\nTry \"help qemu-io\" for more information\r\n"
            );
            assert_eq!(parse(line), refused(Some(said), &reply), "{line}");
        }
    }

    #[test]
    fn commands_that_there_are_not() {
        for (line, name) in [
            ("foo", "foo"),
            ("foo bar", "foo"),
            ("qemu-iox r length", "qemu-iox"),
            ("\"qemu-io\" r length", "\"qemu-io\""),
            ("info foo", "info foo"),
            ("info \"block\"", "info \"block\""),
            ("help foo", "foo"),
            ("help info foo", "info foo"),
            ("help a b", "a"),
        ] {
            let reply = format!("unknown command: '{name}'\r\n");
            assert_eq!(parse(line), refused(None, &reply), "{line}");
        }
        assert_eq!(parse(""), Ok(Line::Empty));
        assert_eq!(parse(" \t "), Ok(Line::Empty));
    }

    #[test]
    fn other_commands() {
        let block = |nodes, verbose, name: Option<&str>| {
            Ok(Line::InfoBlock {
                nodes,
                verbose,
                name: name.map(str::to_owned),
            })
        };
        assert_eq!(parse("info block"), block(false, false, None));
        assert_eq!(parse("info block r"), block(false, false, Some("r")));
        assert_eq!(parse("info block -n -v r"), block(true, true, Some("r")));
        assert_eq!(parse("info block -v"), block(false, true, None));
        assert_eq!(parse("info block-jobs "), Ok(Line::InfoBlockJobs));
        let name = "all".into();
        assert_eq!(parse("commit all"), Ok(Line::Commit { name }));
        for (line, reply) in [
            (
                "info block -n -n r",
                "block: unsupported option -n\r\nTry \"help info block\" for more information\r\n",
            ),
            (
                "info block -v -n r",
                "block: extraneous characters at the end of line\r\nTry \"help info block\" for \
                 more information\r\n",
            ),
            (
                "info block-jobs x",
                "block-jobs: extraneous characters at the end of line\r\nTry \"help info \
                 block-jobs\" for more information\r\n",
            ),
            (
                "commit",
                "commit: block device name expected\r\nTry \"help commit\" for more \
                 information\r\n",
            ),
        ] {
            assert_eq!(parse(line), refused(None, reply), "{line}");
        }
    }

    #[test]
    fn help_shows_what_there_is() {
        let help = |line| match parse(line) {
            Ok(Line::Help(text)) => text,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(
            help("? qemu-io"),
            "qemu-io [-d] [device] \"[command]\" -- run a qemu-io command on a block \
             device\r\n\t\t\t-d: [device] is a device ID rather than a drive ID or node name\r\n"
        );
        assert_eq!(help("help help"), "help|? [cmd] -- show the help\r\n");
        assert_eq!(help("help commit x"), help("help commit"));
        assert_eq!(
            help("help info block-jobs"),
            "info block-jobs  -- show progress of ongoing block device operations\r\n"
        );
        assert_eq!(help("info"), help("help info"));
        assert_eq!(help("help").lines().count(), 6);
        assert!(COMMANDS.is_sorted_by_key(|entry| entry.name));
    }

    proptest! {
        /// What is quoted as the rules say comes back; nothing else panics.
        #[test]
        fn quoting_loses_nothing(text in any::<String>(), line in any::<String>()) {
            let quoted: String = text
                .chars()
                .map(|c| match c {
                    '\n' => "\\n".to_owned(),
                    '\\' | '"' => format!("\\{c}"),
                    c => c.to_string(),
                })
                .collect();
            let parsed = parse(&format!("qemu-io n \"{quoted}\""));
            prop_assert_eq!(parsed, qemu_io(false, "n", &text));
            let _ = parse(&line);
            let _ = parse(&format!("qemu-io {line}"));
        }
    }
}
