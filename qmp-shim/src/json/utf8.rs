//! UTF-8 as QEMU decodes it: a NUL may be written as C0 80, and code points that are no
//! characters are malformed.

/// What stands for a malformed sequence.
const REPLACEMENT: char = '\u{fffd}';

/// The character that the bytes begin with, and how many of them it takes. A malformed
/// sequence is `None`, and as long as its first byte announces or its bytes that go on.
/// Nothing is begun by no bytes.
pub(super) fn first(bytes: &[u8]) -> (Option<char>, usize) {
    let Some(&lead) = bytes.first() else {
        return (None, 0);
    };
    let announced = match lead {
        0x00..=0x7f => return (Some(char::from(lead)), 1),
        0x80..=0xbf | 0xfe | 0xff => return (None, 1),
        // The number of ones at the top; the oldest UTF-8 went up to six bytes.
        _ => lead.leading_ones() as usize,
    };
    let tail = bytes[1..].iter().take(announced - 1);
    let tail: &[u8] = &bytes[1..=tail.take_while(|&&byte| byte & 0xc0 == 0x80).count()];
    if tail.len() + 1 < announced {
        return (None, tail.len() + 1);
    }
    let lead = u32::from(lead & (0x7f >> announced));
    let code = tail
        .iter()
        .fold(lead, |code, &byte| code << 6 | u32::from(byte & 0x3f));
    let is_nul = code == 0 && announced == 2;
    let character = char::from_u32(code)
        .filter(|&character| character.len_utf8() == announced || is_nul)
        .filter(|&character| !is_noncharacter(character));
    (character, announced)
}

/// The characters, with U+FFFD for each malformed sequence.
pub(super) fn to_text(mut bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    while !bytes.is_empty() {
        let (character, len) = first(bytes);
        text.push(character.unwrap_or(REPLACEMENT));
        bytes = &bytes[len..];
    }
    text
}

/// Unicode section 23.7: code points that are never characters.
pub(super) fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_sequences_are_replaced_one_by_one() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"a\xc3\xa9\xf0\x9f\x98\x80", "a\u{e9}\u{1f600}"),
            (b"\xc0\x80", "\0"),
            (b"\xc0\x81\xe0\x80\x80x", "\u{fffd}\u{fffd}x"),
            (b"\x80\xbf", "\u{fffd}\u{fffd}"),
            (b"\xc3", "\u{fffd}"),
            (b"\xc3\"", "\u{fffd}\""),
            (b"\xe2\x82\"", "\u{fffd}\""),
            (b"\xe2\x82\xe2\x82\xac", "\u{fffd}\u{20ac}"),
            (b"\xed\xa0\x80", "\u{fffd}"),
            (b"\xef\xbf\xbe\xef\xb7\x90", "\u{fffd}\u{fffd}"),
            (b"\xf4\x90\x80\x80", "\u{fffd}"),
            (b"\xf8\x88\x80\x80\x80|", "\u{fffd}|"),
            (b"\xfd\xbf\xbf\xbf\xbf\xbf|", "\u{fffd}|"),
            (b"\xfe\xff", "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(to_text(bytes), text, "{bytes:x?}");
        }
    }
}
