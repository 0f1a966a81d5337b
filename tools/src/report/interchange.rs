//! A histogram as text, in the form in which the tools of `HdrHistogram` exchange them: its V2
//! encoding, deflated, in base64. Histogram logs hold it, and the other languages' libraries read
//! it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

/// The histogram as text.
pub(crate) fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .expect("a histogram of counts fits in memory");
    STANDARD.encode(bytes)
}

/// The histogram that a text holds.
///
/// # Errors
///
/// What is wrong with the text.
pub(crate) fn decode(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_comes_back_as_it_was() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 2).unwrap();
        for value in [1, 1, 700, 60_000_000_000] {
            histogram.record(value).unwrap();
        }
        let text = encode(&histogram);
        // The beginning of every deflated V2 histogram.
        assert!(text.starts_with("HISTFAAA"), "{text}");
        assert_eq!(decode(&text), Ok(histogram));
    }

    #[test]
    fn what_is_no_histogram_is_refused() {
        let whole = encode(&Histogram::new(2).unwrap());
        for text in ["", "?", "AAAA", &whole[..whole.len() / 2]] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
