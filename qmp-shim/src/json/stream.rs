//! Values that follow each other in bytes which arrive bit by bit.

use serde_json::Value;

use super::lexer::{Kind, State, Step, in_string};
use super::parser::{self, Token};
use super::{JsonError, MAX_DEPTH, MAX_TEXT, MAX_TOKENS, Result, utf8};

/// Above this the memory of a finished value is given back, in bytes.
const KEPT_CAPACITY: usize = 1 << 16;

/// Reads values from a stream of bytes.
///
/// A value is read when its brackets close, or it has none and its token ends; no blank is
/// needed between two values. After an error the stream goes on in the middle of whatever
/// was wrong, so that one mistake can give several errors. A bad token is passed over up
/// to one of `{}[],:`, a control character other than a tab, or a byte FE or FF; those two
/// are an error of their own, which a client may provoke to begin anew.
#[derive(Debug)]
pub struct Stream {
    state: State,
    /// The tokens of the value that is being read, each beginning where the one before
    /// ends, and last the token that is being read.
    text: Vec<u8>,
    /// The tokens in `text` that are complete.
    tokens: Vec<Token>,
    /// How many are open. Braces and brackets are counted apart, as QEMU does:
    /// `{"a":[1}` goes on.
    braces: isize,
    brackets: isize,
    /// The token that is being read made the value too long: it is passed over.
    passing_over: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

impl Stream {
    /// A stream of which nothing is read yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Start,
            text: Vec::new(),
            tokens: Vec::new(),
            braces: 0,
            brackets: 0,
            passing_over: false,
        }
    }

    /// Reads on, and returns the values and errors which these bytes complete, in order.
    /// There are at most as many as bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Result<Value>> {
        let mut read = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            // Strings can be long: take all that needs no thought at once.
            if let State::String(quote) = self.state {
                let plain = |&byte: &u8| in_string(byte) && byte != quote && byte != b'\\';
                let rest = &bytes[at..];
                let run = rest.iter().position(|byte| !plain(byte));
                let run = run.unwrap_or(rest.len());
                self.keep(&rest[..run], &mut read);
                at += run;
            }
            let Some(&byte) = bytes.get(at) else {
                break;
            };
            if self.take(byte, &mut read) {
                at += 1;
            }
        }
        read
    }

    /// Ends the text, and returns what its end completes: a number or a word that might
    /// have gone on, and what becomes of a value that is not complete.
    pub fn finish(mut self) -> Vec<Result<Value>> {
        let mut read = Vec::new();
        // A NUL goes on no token, and it is not shown: so it does what the end does.
        if self.state != State::Start {
            self.take(0, &mut read);
        }
        if !self.tokens.is_empty() {
            read.push(self.parse());
        }
        read
    }

    /// Whether the byte is done with; if not, it is to be taken again.
    fn take(&mut self, byte: u8, read: &mut Vec<Result<Value>>) -> bool {
        let step = self.state.step(byte);
        match step {
            Step::Skip => {}
            Step::Grow(state) => {
                self.state = state;
                self.keep(&[byte], read);
            }
            Step::End(kind) => {
                self.keep(&[byte], read);
                self.end_token(kind, read);
            }
            Step::EndBefore(kind) => self.end_token(kind, read),
            Step::Stray => self.stray(byte, read),
            Step::Recovered => self.state = State::Start,
        }
        !matches!(step, Step::EndBefore(_) | Step::Recovered)
    }

    /// Adds to the token that is being read.
    fn keep(&mut self, bytes: &[u8], read: &mut Vec<Result<Value>>) {
        if self.passing_over {
            return;
        }
        if self.text.len() + bytes.len() < MAX_TEXT {
            self.text.extend_from_slice(bytes);
            return;
        }
        self.forget();
        self.passing_over = true;
        read.push(Err(JsonError::TooLong));
    }

    fn end_token(&mut self, kind: Kind, read: &mut Vec<Result<Value>>) {
        self.state = State::Start;
        if std::mem::take(&mut self.passing_over) {
            return;
        }
        match kind {
            Kind::Mark(b'{') => self.braces += 1,
            Kind::Mark(b'}') => self.braces -= 1,
            Kind::Mark(b'[') => self.brackets += 1,
            Kind::Mark(b']') => self.brackets -= 1,
            _ => {}
        }
        let outcome = if self.tokens.len() == MAX_TOKENS {
            Err(JsonError::TooManyTokens)
        } else if (self.braces + self.brackets).unsigned_abs() > MAX_DEPTH {
            Err(JsonError::TooDeep)
        } else {
            let end = self.text.len();
            self.tokens.push(Token { kind, end });
            // One that closes too often is for the parser to report.
            let balanced = self.braces == 0 && self.brackets == 0;
            if !balanced && self.braces >= 0 && self.brackets >= 0 {
                return;
            }
            self.parse()
        };
        self.forget();
        read.push(outcome);
    }

    fn stray(&mut self, byte: u8, read: &mut Vec<Result<Value>>) {
        self.state = State::Recovery;
        if std::mem::take(&mut self.passing_over) {
            return;
        }
        let start = self.tokens.last().map_or(0, |token| token.end);
        let mut token = self.text.split_off(start);
        // QEMU's texts end at a NUL.
        if byte != 0 {
            token.push(byte);
        }
        self.forget();
        read.push(Err(JsonError::Stray {
            token: utf8::to_text(&token),
        }));
    }

    fn parse(&self) -> Result<Value> {
        parser::parse(&self.text, &self.tokens)
    }

    /// Begins a new value.
    fn forget(&mut self) {
        self.braces = 0;
        self.brackets = 0;
        self.text.clear();
        self.text.shrink_to(KEPT_CAPACITY);
        self.tokens.clear();
        self.tokens.shrink_to(KEPT_CAPACITY / size_of::<Token>());
    }
}
