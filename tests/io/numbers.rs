//! Sizes and pattern bytes, also made up ones.

use crate::beside::Beside;

const PARTS: &[&str] = &[
    "0",
    "1",
    "5",
    "9",
    "07",
    "x",
    "0x",
    "0X",
    "a",
    "f",
    ".",
    "k",
    "K",
    "m",
    "e",
    "E",
    "b",
    "G",
    "T",
    "P",
    "-",
    "+",
    "\t",
    "99999999999",
    "18446744073709551615",
    "9223372036854775807",
    "_",
    "KiB",
    "e3",
    ".5",
    ".999999",
    ".0001",
];

/// Texts of a few parts each; the same for the same seed.
fn made_up(seed: u64, count: usize) -> impl Iterator<Item = String> {
    let mut state = seed;
    let mut next = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    (0..count).map(move |_| {
        let parts = 1 + next(4);
        (0..parts).map(|_| PARTS[next(PARTS.len())]).collect()
    })
}

#[test]
fn sizes_and_patterns() {
    let Some(beside) = Beside::new() else { return };
    let mut lines = String::new();
    for text in made_up(1, 2000) {
        lines += &format!("alloc {text}\nread -q -P {text} 0 0\n");
    }
    beside.agree_on(&["-f", "raw", "a.img"], &lines);
}

#[test]
fn numbers_where_others_stand_beside_them() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on_each(
        "read 1.5k 0x10
         read 08 010
         read 0x1k 1
         read 1 0.5
         read -- -1 0
         read -- -1k 0
         read -1 0
         alloc -0
         read -P 0377 0 1
         read -P 08 0 1
         read -P 256 0 1
         read -P -1 0 1
         read -s 1x 0 1
         read -l 9E 0 1
         read 9E 1
         sleep x
         sleep -5
         sleep 08
         sleep 010
         sleep 1k
         sigraise 0
         sigraise 65
         sigraise 66
         sigraise x
         sigraise -1
         sigraise 13",
    );
}
