//! JSON as QEMU writes it: ASCII only, with blanks behind `,` and `:`.

use std::fmt::Write as _;

use serde_json::{Number, Value};

use super::utf8::is_noncharacter;

/// The digits that a double is written with: so many that it is read back as it was.
const DIGITS: i32 = 17;

/// One value as text: on one line, or pretty, with line ends and four blanks a level.
///
/// A code point that is no character is written as U+FFFD, since no reader of QEMU's kind
/// takes it.
///
/// The writer recurses as deep as the value is nested, which [`super::MAX_DEPTH`] bounds
/// for whatever was read by this module.
#[must_use]
pub fn write_value(value: &Value, pretty: bool) -> String {
    let mut writer = Writer::new(pretty);
    writer.value(value);
    writer.text
}

/// An object of these members as text, in their order. See [`write_value`].
pub fn write_object<'a>(
    members: impl IntoIterator<Item = (&'a str, &'a Value)>,
    pretty: bool,
) -> String {
    let mut writer = Writer::new(pretty);
    writer.object(members);
    writer.text
}

/// Deeper lines are indented no further: a client's own deep value, echoed, shall not
/// come back a thousand times as long.
const INDENT_MAX: usize = 64;

struct Writer {
    text: String,
    pretty: bool,
    /// How many brackets are open.
    depth: usize,
}

impl Writer {
    fn new(pretty: bool) -> Self {
        Self {
            text: String::new(),
            pretty,
            depth: 0,
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.text.push_str("null"),
            Value::Bool(true) => self.text.push_str("true"),
            Value::Bool(false) => self.text.push_str("false"),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.string(text),
            Value::Array(elements) => self.list(elements),
            Value::Object(members) => {
                self.object(members.iter().map(|(key, value)| (key.as_str(), value)));
            }
        }
    }

    fn list(&mut self, elements: &[Value]) {
        self.open('[');
        for (index, element) in elements.iter().enumerate() {
            self.separate(index);
            self.value(element);
        }
        self.close(']');
    }

    fn object<'a>(&mut self, members: impl IntoIterator<Item = (&'a str, &'a Value)>) {
        self.open('{');
        for (index, (key, value)) in members.into_iter().enumerate() {
            self.separate(index);
            self.string(key);
            self.text.push_str(": ");
            self.value(value);
        }
        self.close('}');
    }

    fn open(&mut self, bracket: char) {
        self.text.push(bracket);
        self.depth += 1;
    }

    /// A pretty bracket closes on a line of its own even if nothing is in it.
    fn close(&mut self, bracket: char) {
        self.depth -= 1;
        self.new_line();
        self.text.push(bracket);
    }

    fn separate(&mut self, index: usize) {
        if index > 0 {
            self.text.push_str(if self.pretty { "," } else { ", " });
        }
        self.new_line();
    }

    fn new_line(&mut self) {
        if self.pretty {
            self.text.push('\n');
            let depth = self.depth.min(INDENT_MAX);
            self.text.extend(std::iter::repeat_n("    ", depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                ' '..='~' => self.text.push(character),
                _ if is_noncharacter(character) => self.text.push_str("\\uFFFD"),
                _ => self.escaped(character),
            }
        }
        self.text.push('"');
    }

    fn escaped(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "\\u{unit:04X}");
        }
    }

    fn number(&mut self, number: &Number) {
        let _ = match number.as_f64() {
            Some(double) if number.is_f64() => write!(self.text, "{}", general(double)),
            _ => write!(self.text, "{number}"),
        };
    }
}

/// What C's `%.17g` gives: [`DIGITS`] digits without zeros at the end, and an exponent
/// only for the very large and the very small.
fn general(double: f64) -> String {
    let scientific = format!("{double:.0$e}", 16);
    let parts = scientific.split_once('e');
    let Some((mantissa, Ok(exponent))) = parts.map(|(m, e)| (m, e.parse::<i32>())) else {
        // Infinities and the like, which JSON cannot have, and neither can a `Number`.
        return scientific;
    };
    if (-4..DIGITS).contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        return without_zeros(&format!("{double:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let mantissa = without_zeros(mantissa);
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

fn without_zeros(decimal: &str) -> &str {
    if decimal.contains('.') {
        decimal.trim_end_matches('0').trim_end_matches('.')
    } else {
        decimal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_line_has_blanks_behind_commas_and_colons() {
        let value = json!({"a": [1, -2, true, false, null], "b": {}, "c": [], "d": {"e": [[]]}});
        assert_eq!(
            write_value(&value, false),
            r#"{"a": [1, -2, true, false, null], "b": {}, "c": [], "d": {"e": [[]]}}"#
        );
    }

    #[test]
    fn pretty_is_what_qemu_calls_pretty() {
        let value = json!({"a": [1, {"b": "c"}], "d": {}, "e": []});
        let wanted = r#"{
    "a": [
        1,
        {
            "b": "c"
        }
    ],
    "d": {
    },
    "e": [
    ]
}"#;
        assert_eq!(write_value(&value, true), wanted);
    }

    #[test]
    fn strings_are_ascii() {
        for (text, wanted) in [
            ("/<'\"\\", r#""/<'\"\\""#),
            ("\u{8}\u{c}\n\r\t\0\u{1f}", r#""\b\f\n\r\t\u0000\u001F""#),
            ("~\u{7f}\u{80}\u{e9}", r#""~\u007F\u0080\u00E9""#),
            ("\u{20ac}\u{fffd}\u{1f600}", r#""\u20AC\uFFFD\uD83D\uDE00""#),
            ("\u{fffe}\u{10ffff}\u{fdd0}", r#""\uFFFD\uFFFD\uFFFD""#),
        ] {
            assert_eq!(write_value(&json!(text), false), wanted);
        }
    }

    #[test]
    fn doubles_have_seventeen_digits() {
        for (double, wanted) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (0.1, "0.10000000000000001"),
            (100.0, "100"),
            (0.0001, "0.0001"),
            (0.00001, "1.0000000000000001e-05"),
            (-123_456.789, "-123456.789"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (18_446_744_073_709_551_616.0, "1.8446744073709552e+19"),
            (1e100, "1e+100"),
            (1.5e-300, "1.5000000000000001e-300"),
            (5e-324, "4.9406564584124654e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            // Halfway between two: the even one.
            (562_949_953_421_311.0 + 0.125, "562949953421311.12"),
            (562_949_953_421_311.0 + 0.375, "562949953421311.38"),
        ] {
            assert_eq!(write_value(&json!(double), false), wanted);
        }
        assert_eq!(
            write_value(&json!([i64::MIN, u64::MAX]), false),
            "[-9223372036854775808, 18446744073709551615]"
        );
    }
}
