//! Options in the manner of getopt(3) of the GNU C library: options may stand
//! between and after the other words, `--` ends them, and errors have its
//! texts. Scripts compare those.

use std::fmt;

/// Whether an option has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    None,
    Required,
}

/// A long option and the letter that means the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Long {
    pub(crate) name: &'static str,
    pub(crate) value: Value,
    pub(crate) letter: char,
}

/// What one program or command understands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Syntax {
    /// Letters; a colon after one says that it has a value.
    pub(crate) letters: &'static str,
    pub(crate) long: &'static [Long],
}

impl Syntax {
    /// Letters alone.
    pub(crate) const fn letters(letters: &'static str) -> Self {
        Self { letters, long: &[] }
    }

    fn letter(&self, letter: char) -> Option<Value> {
        let at = self.letters.find(letter).filter(|_| letter != ':')?;
        let has_value = self.letters[at..].chars().nth(1) == Some(':');
        Some(if has_value {
            Value::Required
        } else {
            Value::None
        })
    }
}

/// One option as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) letter: char,
    value: Option<String>,
}

impl Given {
    /// The value of an option that has one; else nothing.
    pub(crate) fn value(self) -> String {
        self.value.unwrap_or_default()
    }
}

/// A line for standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Goes through the words. What is not an option is collected.
pub(crate) struct Getopt<'a> {
    /// Stands before the texts of errors.
    name: &'a str,
    syntax: Syntax,
    words: &'a [String],
    next: usize,
    /// What is left of a word of several letters.
    cluster: &'a str,
    others: Vec<String>,
}

impl<'a> Getopt<'a> {
    /// `words` come without the name of the program or command.
    pub(crate) fn new(name: &'a str, syntax: Syntax, words: &'a [String]) -> Self {
        Self {
            name,
            syntax,
            words,
            next: 0,
            cluster: "",
            others: Vec::new(),
        }
    }

    /// All words that are no options, in order. To be asked at the end.
    pub(crate) fn others(self) -> Vec<String> {
        self.others
    }

    /// These, and all words that were not looked at.
    pub(crate) fn rest(self) -> Vec<String> {
        let mut words = self.others;
        words.extend_from_slice(self.words.get(self.next..).unwrap_or_default());
        words
    }

    /// The next option; none at the end.
    ///
    /// # Errors
    ///
    /// An option that does not exist, or without its value.
    pub(crate) fn next(&mut self) -> Result<Option<Given>, Unusable> {
        while self.cluster.is_empty() {
            let Some(word) = self.words.get(self.next) else {
                return Ok(None);
            };
            self.next += 1;
            if word == "--" {
                self.others.extend_from_slice(&self.words[self.next..]);
                self.next = self.words.len();
            } else if let Some(long) = word
                .strip_prefix("--")
                .filter(|_| !self.syntax.long.is_empty())
            {
                return self.long(long).map(Some);
            } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                self.cluster = letters;
            } else {
                self.others.push(word.clone());
            }
        }
        self.short().map(Some)
    }

    fn short(&mut self) -> Result<Given, Unusable> {
        let mut letters = self.cluster.chars();
        let letter = letters.next().expect("the caller has looked");
        let rest = letters.as_str();
        self.cluster = "";
        let value = match self.syntax.letter(letter) {
            None => return Err(self.unusable(&format!("invalid option -- '{letter}'"))),
            Some(Value::None) => {
                self.cluster = rest;
                None
            }
            Some(Value::Required) if rest.is_empty() => {
                let text = format!("option requires an argument -- '{letter}'");
                Some(self.word(&text)?)
            }
            Some(Value::Required) => Some(rest.to_owned()),
        };
        Ok(Given { letter, value })
    }

    fn long(&mut self, text: &str) -> Result<Given, Unusable> {
        let (name, given) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let option = self.find_long(name)?;
        let value = match (option.value, given) {
            (Value::None, None) => None,
            (Value::None, Some(_)) => {
                let text = format!("option '--{}' doesn't allow an argument", option.name);
                return Err(self.unusable(&text));
            }
            (Value::Required, Some(value)) => Some(value),
            (Value::Required, None) => {
                let text = format!("option '--{}' requires an argument", option.name);
                Some(self.word(&text)?)
            }
        };
        Ok(Given {
            letter: option.letter,
            value,
        })
    }

    /// A name, or the beginning of one that is the only such.
    fn find_long(&self, name: &str) -> Result<Long, Unusable> {
        let all = self.syntax.long;
        let exact = all.iter().find(|option| option.name == name).copied();
        let candidates: Vec<_> = all
            .iter()
            .filter(|option| option.name.starts_with(name))
            .copied()
            .collect();
        match (exact, candidates.as_slice()) {
            (Some(option), _) | (None, &[option]) => Ok(option),
            (None, []) => Err(self.unusable(&format!("unrecognized option '--{name}'"))),
            (None, several) => {
                let mut text = format!("option '--{name}' is ambiguous; possibilities:");
                for option in several {
                    text += &format!(" '--{}'", option.name);
                }
                Err(self.unusable(&text))
            }
        }
    }

    /// The next word as a value, or the error.
    fn word(&mut self, error: &str) -> Result<String, Unusable> {
        let word = self.words.get(self.next).cloned();
        self.next += 1;
        word.ok_or_else(|| self.unusable(error))
    }

    fn unusable(&self, text: &str) -> Unusable {
        Unusable(format!("{}: {text}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &[Long] = &[
        Long {
            name: "cmd",
            value: Value::Required,
            letter: 'c',
        },
        Long {
            name: "cache",
            value: Value::Required,
            letter: 't',
        },
        Long {
            name: "read-only",
            value: Value::None,
            letter: 'r',
        },
    ];

    /// Options as `letter=value` and what is left, or the error.
    fn parse(syntax: Syntax, line: &str) -> Result<(Vec<String>, Vec<String>), String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut getopt = Getopt::new("read", syntax, &words);
        let mut options = Vec::new();
        while let Some(given) = getopt.next().map_err(|error| error.to_string())? {
            options.push(match &given.value {
                Some(value) => format!("{}={value}", given.letter),
                None => given.letter.to_string(),
            });
        }
        Ok((options, getopt.others()))
    }

    fn short(line: &str) -> Result<(Vec<String>, Vec<String>), String> {
        parse(Syntax::letters("CP:qv"), line)
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().copied().map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere_before_two_dashes() {
        let expected = (owned(&["q", "P=7", "v", "C"]), owned(&["0", "-", "512"]));
        assert_eq!(short("-q 0 -P7 - -vC 512"), Ok(expected));
        let expected = (owned(&["P=-1"]), owned(&["x", "-q", "--", "y"]));
        assert_eq!(short("x -P -1 -- -q -- y"), Ok(expected));
        assert_eq!(short("-P --"), Ok((owned(&["P=--"]), Vec::new())));
    }

    #[test]
    fn errors_read_as_those_of_the_c_library() {
        for (line, expected) in [
            ("-x", "read: invalid option -- 'x'"),
            ("-qx", "read: invalid option -- 'x'"),
            ("-:", "read: invalid option -- ':'"),
            ("--foo", "read: invalid option -- '-'"),
            ("0 -P", "read: option requires an argument -- 'P'"),
        ] {
            assert_eq!(short(line).expect_err(line), expected);
        }
    }

    #[test]
    fn long_options_may_be_cut_short() {
        let syntax = Syntax {
            letters: "c:rt:",
            long: LONG,
        };
        let expected = (owned(&["r", "c=a", "t=b=c", "c="]), owned(&["f"]));
        assert_eq!(
            parse(syntax, "--re f --cmd a --cac=b=c --cm="),
            Ok(expected)
        );
        for (line, expected) in [
            ("--foo", "read: unrecognized option '--foo'"),
            ("--foo=1", "read: unrecognized option '--foo'"),
            (
                "--c x",
                "read: option '--c' is ambiguous; possibilities: '--cmd' '--cache'",
            ),
            ("--cm", "read: option '--cmd' requires an argument"),
            (
                "--read=1",
                "read: option '--read-only' doesn't allow an argument",
            ),
        ] {
            assert_eq!(parse(syntax, line).expect_err(line), expected);
        }
    }
}
