//! Sets of bytes of a disk, as ascending lists of ranges.

use ringback_block::span::Span;

/// How many bytes there are.
pub(crate) fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| span.len).sum()
}

/// Whole units around each range, as far as the disk of `size` bytes reaches.
pub(crate) fn widened(spans: &[Span], unit: u64, size: u64) -> Vec<Span> {
    let mut wide: Vec<Span> = Vec::new();
    for span in spans.iter().filter(|span| !span.is_empty()) {
        let (start, end) = (
            span.offset - span.offset % unit,
            span.end().next_multiple_of(unit).min(size),
        );
        match wide.last_mut() {
            Some(last) if last.end() >= start => {
                *last = Span::between(last.offset, last.end().max(end));
            }
            _ => wide.push(Span::between(start, end)),
        }
    }
    wide
}

/// What is in both.
pub(crate) fn common(a: &[Span], b: &[Span]) -> Vec<Span> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut both = Vec::new();
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        let (start, end) = (left.offset.max(right.offset), left.end().min(right.end()));
        if start < end {
            both.push(Span::between(start, end));
        }
        if left.end() <= right.end() {
            a.next();
        } else {
            b.next();
        }
    }
    both
}

/// What is in `a` and not in `b`.
pub(crate) fn without(a: &[Span], b: &[Span]) -> Vec<Span> {
    let mut left = Vec::new();
    let mut others = b.iter().peekable();
    for span in a {
        let mut start = span.offset;
        while others.next_if(|other| other.end() <= start).is_some() {}
        let mut ahead = others.clone();
        while let Some(other) = ahead.next_if(|other| other.offset < span.end()) {
            if start < other.offset {
                left.push(Span::between(start, other.offset));
            }
            start = start.max(other.end());
        }
        if start < span.end() {
            left.push(Span::between(start, span.end()));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 40;

    /// A list of ranges from a set of bytes.
    fn spans(bytes: &[bool]) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for at in (0..SIZE).filter(|&at| bytes[usize::try_from(at).expect("small")]) {
            match spans.last_mut() {
                Some(last) if last.end() == at => last.len += 1,
                _ => spans.push(Span::new(at, 1)),
            }
        }
        spans
    }

    fn bytes(spans: &[Span]) -> Vec<bool> {
        let is_in = |at| {
            spans
                .iter()
                .any(|span| (span.offset..span.end()).contains(&at))
        };
        (0..SIZE).map(is_in).collect()
    }

    proptest! {
        #[test]
        fn they_are_what_sets_are(
            a in prop::collection::vec(any::<bool>(), 40),
            b in prop::collection::vec(any::<bool>(), 40),
        ) {
            let (left, right) = (spans(&a), spans(&b));
            let both: Vec<bool> = a.iter().zip(&b).map(|(a, b)| *a && *b).collect();
            let rest: Vec<bool> = a.iter().zip(&b).map(|(a, b)| *a && !*b).collect();
            prop_assert_eq!(bytes(&common(&left, &right)), both);
            prop_assert_eq!(bytes(&without(&left, &right)), rest);
            prop_assert_eq!(total(&left), a.iter().filter(|is_in| **is_in).count() as u64);
            let wide = bytes(&widened(&left, 8, SIZE));
            let touched: Vec<bool> = (0..40usize)
                .map(|at| a[at / 8 * 8..at / 8 * 8 + 8].contains(&true))
                .collect();
            prop_assert_eq!(wide, touched);
        }
    }
}
