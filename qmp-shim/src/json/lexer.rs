//! Where one token ends and the next begins, byte by byte.
//!
//! This is a state machine without memory of the bytes: who drives it keeps them.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One of `{}[],:`.
    Mark(u8),
    /// A string with its quotes and escapes.
    String,
    /// A number in decimal.
    Number,
    /// A word in small letters.
    Keyword,
}

/// What has been read of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing yet.
    Start,
    /// A bad token: whatever may still belong to it is passed over.
    Recovery,
    /// The opening quote, this one, and some of the string.
    String(u8),
    /// In such a string, a backslash.
    Escape(u8),
    /// The sign of a number.
    Sign,
    /// A number's leading zero. No digit may follow, and no exponent, says QEMU.
    Zero,
    /// The digits before the point.
    Digits,
    /// The point.
    Point,
    /// The digits behind the point.
    Fraction,
    /// The `e`.
    Exponent,
    /// The sign behind the `e`.
    ExponentSign,
    /// The digits behind the `e`.
    ExponentDigits,
    /// Some letters.
    Keyword,
}

/// What a byte does to the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It lies between tokens, or in a bad one.
    Skip,
    /// It belongs to the token, which may go on.
    Grow(State),
    /// It is the token's last one.
    End(Kind),
    /// The token ended before it. It is to be looked at again, in [`State::Start`].
    EndBefore(Kind),
    /// It spoils the token, and belongs to what is shown of it.
    Stray,
    /// The bad token ended before it. It is to be looked at again, in [`State::Start`].
    Recovered,
}

impl State {
    pub(super) fn step(self, byte: u8) -> Step {
        match self {
            Self::Start => start(byte),
            Self::Recovery => recover(byte),
            Self::String(quote) if byte == quote => Step::End(Kind::String),
            Self::String(quote) if byte == b'\\' => Step::Grow(Self::Escape(quote)),
            Self::String(quote) | Self::Escape(quote) if in_string(byte) => {
                Step::Grow(Self::String(quote))
            }
            Self::String(_) | Self::Escape(_) => Step::Stray,
            Self::Sign => match byte {
                b'0' => Step::Grow(Self::Zero),
                b'1'..=b'9' => Step::Grow(Self::Digits),
                _ => Step::Stray,
            },
            Self::Zero => match byte {
                b'0'..=b'9' => Step::Stray,
                b'.' => Step::Grow(Self::Point),
                _ => Step::EndBefore(Kind::Number),
            },
            Self::Digits => match byte {
                b'0'..=b'9' => Step::Grow(Self::Digits),
                b'.' => Step::Grow(Self::Point),
                b'e' | b'E' => Step::Grow(Self::Exponent),
                _ => Step::EndBefore(Kind::Number),
            },
            Self::Point if byte.is_ascii_digit() => Step::Grow(Self::Fraction),
            Self::Point => Step::Stray,
            Self::Fraction => match byte {
                b'0'..=b'9' => Step::Grow(Self::Fraction),
                b'e' | b'E' => Step::Grow(Self::Exponent),
                _ => Step::EndBefore(Kind::Number),
            },
            Self::Exponent if matches!(byte, b'+' | b'-') => Step::Grow(Self::ExponentSign),
            Self::Exponent | Self::ExponentSign if byte.is_ascii_digit() => {
                Step::Grow(Self::ExponentDigits)
            }
            Self::Exponent | Self::ExponentSign => Step::Stray,
            Self::ExponentDigits if byte.is_ascii_digit() => Step::Grow(Self::ExponentDigits),
            Self::ExponentDigits => Step::EndBefore(Kind::Number),
            Self::Keyword if byte.is_ascii_lowercase() => Step::Grow(Self::Keyword),
            Self::Keyword => Step::EndBefore(Kind::Keyword),
        }
    }
}

fn start(byte: u8) -> Step {
    match byte {
        b' ' | b'\t' | b'\n' | b'\r' => Step::Skip,
        b'{' | b'}' | b'[' | b']' | b',' | b':' => Step::End(Kind::Mark(byte)),
        b'"' | b'\'' => Step::Grow(State::String(byte)),
        b'-' => Step::Grow(State::Sign),
        b'0' => Step::Grow(State::Zero),
        b'1'..=b'9' => Step::Grow(State::Digits),
        b'a'..=b'z' => Step::Grow(State::Keyword),
        _ => Step::Stray,
    }
}

/// A bad token ends where another one surely begins, at the end of a line, and at a byte
/// that cannot stand in UTF-8: clients send one to be heard again.
fn recover(byte: u8) -> Step {
    match byte {
        b'\t' => Step::Skip,
        b'{' | b'}' | b'[' | b']' | b',' | b':' => Step::Recovered,
        _ if in_string(byte) => Step::Skip,
        _ => Step::Recovered,
    }
}

/// Neither a control character nor one of the bytes that no encoding of UTF-8 has had.
pub(super) fn in_string(byte: u8) -> bool {
    (b' '..0xfe).contains(&byte)
}
