//! Words into options, in the manner of getopt_long(3) of the GNU C library and with its texts.

/// Which option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Blockdev,
    Chardev,
    Daemonize,
    Device,
    Drive,
    Export,
    Help,
    Metrics,
    Monitor,
    NbdServer,
    Object,
    Pidfile,
    Poll,
    Shards,
    Trace,
    Verbose,
    Version,
    /// A word that belongs to no option.
    Word,
}

#[derive(Clone, Copy)]
struct Long {
    name: &'static str,
    has_value: bool,
    flag: Flag,
}

const fn long(name: &'static str, has_value: bool, flag: Flag) -> Long {
    Long {
        name,
        has_value,
        flag,
    }
}

/// The options of qemu-storage-daemon. An abbreviation that means one of them there means
/// it here too, whatever we add.
const QEMU: &[Long] = &[
    long("blockdev", true, Flag::Blockdev),
    long("chardev", true, Flag::Chardev),
    long("daemonize", false, Flag::Daemonize),
    long("export", true, Flag::Export),
    long("help", false, Flag::Help),
    long("monitor", true, Flag::Monitor),
    long("nbd-server", true, Flag::NbdServer),
    long("object", true, Flag::Object),
    long("pidfile", true, Flag::Pidfile),
    long("trace", true, Flag::Trace),
    long("version", false, Flag::Version),
];

/// Those that are ours.
const OURS: &[Long] = &[
    long("device", true, Flag::Device),
    long("drive", true, Flag::Drive),
    long("metrics", true, Flag::Metrics),
    long("poll", true, Flag::Poll),
    long("shards", true, Flag::Shards),
];

/// An option as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) flag: Flag,
    /// Empty for an option that has none.
    pub(super) value: String,
    /// The words themselves, which stand before an error.
    pub(super) words: String,
}

/// Goes through the words of a command line, one option at a time.
pub(super) struct Getopt<'a> {
    words: &'a [String],
    next: usize,
    /// The word of several letters that is being read, and what is left of it.
    cluster: Option<(&'a str, &'a str)>,
    /// No word is an option any more.
    is_over: bool,
}

fn plain(word: &str) -> Given {
    Given {
        flag: Flag::Word,
        value: String::new(),
        words: word.to_owned(),
    }
}

impl<'a> Getopt<'a> {
    /// `words` come without the program's name.
    pub(super) fn new(words: &'a [String]) -> Self {
        Self {
            words,
            next: 0,
            cluster: None,
            is_over: false,
        }
    }

    /// The next option, or why it is none: a line without the program's name.
    pub(super) fn next(&mut self) -> Option<Result<Given, String>> {
        if let Some((word, letters)) = self.cluster.take() {
            return Some(self.letter(word, letters));
        }
        let word = self.take()?;
        if self.is_over {
            return Some(Ok(plain(word)));
        }
        if word == "--" {
            self.is_over = true;
            return self.next();
        }
        Some(if let Some(text) = word.strip_prefix("--") {
            self.long(word, text)
        } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            self.letter(word, letters)
        } else {
            Ok(plain(word))
        })
    }

    fn take(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    /// An option with its value, which is the next word if it has not come along.
    fn given(
        &mut self,
        word: &str,
        flag: Flag,
        value: Option<&str>,
        missing: impl FnOnce() -> String,
    ) -> Result<Given, String> {
        let (value, words) = match value {
            Some(value) => (value.to_owned(), word.to_owned()),
            None => {
                let value = self.take().ok_or_else(missing)?;
                (value.to_owned(), format!("{word} {value}"))
            }
        };
        Ok(Given { flag, value, words })
    }

    fn long(&mut self, word: &str, text: &str) -> Result<Given, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let option = find(name, text)?;
        let name = option.name;
        if option.has_value {
            let missing = || format!("option '--{name}' requires an argument");
            return self.given(word, option.flag, value, missing);
        }
        if value.is_some() {
            return Err(format!("option '--{name}' doesn't allow an argument"));
        }
        Ok(Given {
            flag: option.flag,
            value: String::new(),
            words: word.to_owned(),
        })
    }

    /// The first of the letters, which are what is left of `word`.
    fn letter(&mut self, word: &'a str, letters: &'a str) -> Result<Given, String> {
        let letter = letters.chars().next().unwrap_or_default();
        let rest = &letters[letter.len_utf8().min(letters.len())..];
        let rest = Some(rest).filter(|rest| !rest.is_empty());
        let flag = match letter {
            'h' => Flag::Help,
            'V' => Flag::Version,
            'v' => Flag::Verbose,
            'T' => {
                let missing = || "option requires an argument -- 'T'".to_owned();
                return self.given(word, Flag::Trace, rest, missing);
            }
            _ => return Err(format!("invalid option -- '{letter}'")),
        };
        self.cluster = rest.map(|rest| (word, rest));
        Ok(Given {
            flag,
            value: String::new(),
            words: word.to_owned(),
        })
    }
}

/// The option of that name, or of which it is the beginning and of no other.
fn find(name: &str, text: &str) -> Result<Long, String> {
    let all = || QEMU.iter().chain(OURS);
    if let Some(option) = all().find(|option| option.name == name) {
        return Ok(*option);
    }
    let begins = |option: &&Long| option.name.starts_with(name);
    let mut candidates: Vec<_> = QEMU.iter().filter(begins).collect();
    if candidates.is_empty() {
        candidates = OURS.iter().filter(begins).collect();
    }
    match candidates.as_slice() {
        [option] => Ok(**option),
        [] => Err(format!("unrecognized option '--{text}'")),
        several => {
            let mut line = format!("option '--{text}' is ambiguous; possibilities:");
            for option in several {
                line.push_str(&format!(" '--{}'", option.name));
            }
            Err(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Vec<(Flag, String, String)>, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut getopt = Getopt::new(&words);
        let mut options = Vec::new();
        while let Some(given) = getopt.next() {
            let Given { flag, value, words } = given?;
            options.push((flag, value, words));
        }
        Ok(options)
    }

    fn given(flag: Flag, value: &str, words: &str) -> (Flag, String, String) {
        (flag, value.to_owned(), words.to_owned())
    }

    #[test]
    fn options_are_read_with_the_words_they_were_written_in() {
        let wanted = [
            given(Flag::Monitor, "x", "--m x"),
            given(Flag::Object, "a=b", "--object=a=b"),
            given(Flag::Word, "", "w"),
            given(Flag::Trace, "foo", "-vTfoo"),
        ];
        let found = run("--m x --object=a=b w -vTfoo").unwrap();
        assert_eq!(found[..3], wanted[..3]);
        assert_eq!(found[3], given(Flag::Verbose, "", "-vTfoo"));
        assert_eq!(found[4], wanted[3]);
        let wanted = vec![
            given(Flag::Pidfile, "--", "--pid --"),
            given(Flag::Word, "", "--x"),
        ];
        assert_eq!(run("--pid -- -- --x"), Ok(wanted));
    }

    #[test]
    fn abbreviations_of_qemu_stay_what_they_are() {
        assert_eq!(run("--d").unwrap()[0].0, Flag::Daemonize);
        assert_eq!(run("--dr x").unwrap()[0].0, Flag::Drive);
        assert_eq!(run("--dev x").unwrap()[0].0, Flag::Device);
        assert_eq!(run("--p x").unwrap()[0].0, Flag::Pidfile);
        assert_eq!(run("--po 3").unwrap()[0].0, Flag::Poll);
        assert_eq!(run("--s 3").unwrap()[0].0, Flag::Shards);
    }

    #[test]
    fn errors_read_as_those_of_the_c_library() {
        for (line, wanted) in [
            ("--x", "unrecognized option '--x'"),
            ("--x=1", "unrecognized option '--x=1'"),
            ("-x", "invalid option -- 'x'"),
            ("-T", "option requires an argument -- 'T'"),
            ("--pid", "option '--pidfile' requires an argument"),
            ("--d=1", "option '--daemonize' doesn't allow an argument"),
        ] {
            assert_eq!(run(line), Err(wanted.to_owned()), "{line}");
        }
        let line = run("--=x").unwrap_err();
        let wanted = "option '--=x' is ambiguous; possibilities: '--blockdev' '--chardev'";
        assert!(line.starts_with(wanted), "{line}");
    }
}
