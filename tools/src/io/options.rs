//! Option strings (`driver=raw,file.filename=a.img`) and the words for modes of
//! images.

use ringback_ring::file::Cache;

/// Options of a block driver, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    /// Adds what a string holds. Answers warnings to print.
    ///
    /// A comma in a value is doubled. A word without a value is switched on; one
    /// that begins with `no` is switched off.
    pub(crate) fn add(&mut self, text: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        for pair in split(text) {
            match pair.split_once('=') {
                Some((key, value)) => self.set(key, value),
                None => {
                    let (key, value) = match pair.strip_prefix("no") {
                        Some(key) => (key, "off"),
                        None => (pair.as_str(), "on"),
                    };
                    warnings.push(format!(
                        "warning: short-form boolean option '{pair}' deprecated\nPlease use \
                         {key}={value} instead"
                    ));
                    self.set(key, value);
                }
            }
        }
        warnings
    }

    /// The last value of a key counts.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.pairs.iter().rev();
        pairs
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.pairs.retain(|(name, _)| name != key);
        self.pairs.push((key.into(), value.into()));
    }

    /// Takes a key out.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(name, _)| name == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// All keys and values that are left, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// At commas; two of them are one inside a value.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && (!part.contains('=') || chars.next_if_eq(&',').is_none()) {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// How an image's data is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheMode {
    /// Whether the page cache is used.
    pub(crate) cache: Cache,
    /// Each write is followed by a flush.
    pub(crate) writethrough: bool,
    /// Flushes do nothing.
    pub(crate) no_flush: bool,
}

impl Default for CacheMode {
    /// qemu-io is careful unless told otherwise.
    fn default() -> Self {
        Self {
            cache: Cache::Buffered,
            writethrough: true,
            no_flush: false,
        }
    }
}

impl CacheMode {
    /// By its name.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let (cache, writethrough, no_flush) = match name {
            "none" | "off" => (Cache::Direct, false, false),
            "directsync" => (Cache::Direct, true, false),
            "writeback" => (Cache::Buffered, false, false),
            "writethrough" => (Cache::Buffered, true, false),
            "unsafe" => (Cache::Buffered, false, true),
            _ => return Err(format!("Invalid cache option: {name}")),
        };
        Ok(Self {
            cache,
            writethrough,
            no_flush,
        })
    }
}

/// Whether discards reach the image, by the name of the mode.
///
/// # Errors
///
/// The line to print.
pub(crate) fn discard_mode(name: &str) -> Result<bool, String> {
    match name {
        "ignore" | "off" => Ok(false),
        "unmap" | "on" => Ok(true),
        _ => Err(format!("Invalid discard option: {name}")),
    }
}

/// Whether this is the mode that demands direct I/O. All three modes are served
/// by io_uring.
///
/// # Errors
///
/// The line to print.
pub(crate) fn aio_is_native(name: &str) -> Result<bool, String> {
    match name {
        "threads" | "io_uring" => Ok(false),
        "native" => Ok(true),
        _ => Err(format!("Invalid aio option: {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts_and_commas_are_doubled() {
        let mut options = Options::default();
        let warnings = options.add("driver=raw,file.filename=a,,b=c,driver=file");
        assert_eq!(warnings, [""; 0]);
        assert_eq!(options.get("driver"), Some("file"));
        assert_eq!(options.get("file.filename"), Some("a,b=c"));
        assert_eq!(options.take("driver").as_deref(), Some("file"));
        assert_eq!(options.get("driver"), None);
    }

    #[test]
    fn a_word_alone_is_a_switch() {
        let mut options = Options::default();
        let warnings = options.add("read-only,nofoo");
        assert_eq!(
            warnings[0],
            "warning: short-form boolean option 'read-only' deprecated\nPlease use read-only=on \
             instead"
        );
        assert_eq!(warnings.len(), 2);
        assert_eq!(options.get("read-only"), Some("on"));
        assert_eq!(options.get("foo"), Some("off"));
    }

    #[test]
    fn modes() {
        let mode = CacheMode::parse("unsafe").expect("a mode");
        assert!(mode.no_flush && !mode.writethrough);
        assert_eq!(CacheMode::parse("off"), CacheMode::parse("none"));
        assert_eq!(discard_mode("on"), Ok(true));
        assert!(aio_is_native("foo").is_err());
    }
}
