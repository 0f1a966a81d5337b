//! What every driver has: names, caches, discards, and what children inherit of them.

use serde::Serialize;

use super::check_node_name;
use crate::error::{OptionError, Result};
use crate::visit::{Reader, words};

/// Options of every driver, as given. [`CommonOptions::settle`] says what they amount to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommonOptions {
    /// The node's name; mandatory for the outermost node, made up for inner ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Whether discards reach the storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,
    /// How the host's page cache is used.
    #[serde(skip_serializing_if = "CacheOptions::is_empty")]
    pub cache: CacheOptions,
    /// Refuse writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Open the storage for writing only while somebody writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_read_only: Option<bool>,
    /// Open although another process writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_share: Option<bool>,
    /// Whether written zeroes become zero requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detect_zeroes: Option<DetectZeroes>,
}

/// The `cache` object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheOptions {
    /// Pass the page cache by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// Forget flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_flush: Option<bool>,
}

impl CacheOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

words! {
    /// Whether discards reach the storage.
    pub enum Discard {
        /// They are answered and forgotten.
        Ignore = "ignore",
        /// They are passed on.
        Unmap = "unmap",
    }
}

words! {
    /// Whether written zeroes become zero requests.
    pub enum DetectZeroes {
        /// They are written.
        Off = "off",
        /// They become zero requests.
        On = "on",
        /// They become zero requests that may free storage.
        Unmap = "unmap",
    }
}

/// What a node's common options amount to, inheritance included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settings {
    /// Refuse writes.
    pub read_only: bool,
    /// Open the storage for writing only while somebody writes.
    pub auto_read_only: bool,
    /// Open although another process writes.
    pub force_share: bool,
    /// Pass the page cache by.
    pub direct: bool,
    /// Whether `direct` was said, here or by a parent, rather than assumed. ringback may
    /// choose where nobody did.
    pub direct_given: bool,
    /// Forget flushes.
    pub no_flush: bool,
    /// Whether discards reach the storage.
    pub discard: Discard,
    /// Whether written zeroes become zero requests.
    pub detect_zeroes: DetectZeroes,
}

impl CommonOptions {
    /// Fills in what is not given, from the parent for a node defined inside of one.
    #[must_use]
    pub fn settle(&self, parent: Option<&Settings>) -> Settings {
        self.settle_above(&match parent {
            None => Settings::default(),
            Some(parent) => parent.for_child(),
        })
    }

    /// Fills in what is not given with what is given to everybody.
    #[must_use]
    pub(crate) fn settle_above(&self, inherited: &Settings) -> Settings {
        Settings {
            read_only: self.read_only.unwrap_or(inherited.read_only),
            auto_read_only: self.auto_read_only.unwrap_or(inherited.auto_read_only),
            force_share: self.force_share.unwrap_or(inherited.force_share),
            direct: self.cache.direct.unwrap_or(inherited.direct),
            direct_given: self.cache.direct.is_some() || inherited.direct_given,
            no_flush: self.cache.no_flush.unwrap_or(inherited.no_flush),
            discard: self.discard.unwrap_or(inherited.discard),
            detect_zeroes: self.detect_zeroes.unwrap_or(inherited.detect_zeroes),
        }
    }

    /// What can be wrong with the options that every driver has, but for `force-share`.
    pub(crate) fn check(&self, settings: &Settings) -> Result<()> {
        let unmaps = settings.discard == Discard::Unmap;
        if settings.detect_zeroes == DetectZeroes::Unmap && !unmaps {
            return Err(OptionError::DetectZeroesNeedsUnmap);
        }
        match &self.node_name {
            Some(name) => check_node_name(name),
            None => Ok(()),
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            node_name: reader.text("node-name")?,
            discard: read_discard(reader)?,
            cache: CacheOptions::read(reader)?,
            read_only: reader.boolean("read-only")?,
            auto_read_only: reader.boolean("auto-read-only")?,
            force_share: reader.boolean("force-share")?,
            detect_zeroes: reader.word("detect-zeroes")?,
        })
    }
}

/// The older interface has two more words for it, and an error of its own.
fn read_discard(reader: &mut Reader<'_>) -> Result<Option<Discard>> {
    if !reader.is_flat() {
        return reader.word("discard");
    }
    match reader.text("discard")?.as_deref() {
        None => Ok(None),
        Some("ignore" | "off") => Ok(Some(Discard::Ignore)),
        Some("unmap" | "on") => Ok(Some(Discard::Unmap)),
        Some(_) => Err(OptionError::InvalidDiscard),
    }
}

impl Settings {
    /// What a child has if its options say nothing.
    fn for_child(&self) -> Self {
        Self {
            discard: Discard::Unmap,
            detect_zeroes: DetectZeroes::Off,
            ..*self
        }
    }

    /// What a backing file inherits: as any child, but it is not written to.
    #[must_use]
    pub fn for_backing(&self) -> Self {
        Self {
            read_only: true,
            auto_read_only: false,
            ..self.for_child()
        }
    }
}

impl CacheOptions {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let Some(mut cache) = reader.object("cache")? else {
            return Ok(Self::default());
        };
        let options = Self {
            direct: cache.boolean("direct")?,
            no_flush: cache.boolean("no-flush")?,
        };
        cache.finish()?;
        Ok(options)
    }
}
