//! `qcow2`: images in QEMU's own format.
//!
//! | option | meaning |
//! | --- | --- |
//! | `file` | the node with the image |
//! | `backing` | a node, options, or null; when not given, the image decides |
//! | `data-file` | the external data file; when not given, the image decides |
//! | `lazy-refcounts` | put refcounts off; when not given, the image decides |
//! | `pass-discard-request` | a guest's discard reaches the storage; default: as `discard` says |
//! | `pass-discard-snapshot` | so does what a deleted snapshot frees; default on |
//! | `pass-discard-other` | so does everything else that is freed; default off |
//! | `discard-no-unref` | a discarded cluster stays reserved; default off |
//! | `overlap-check` | which metadata is protected, see [`OverlapCheck`] |
//! | `cache-size`, `l2-cache-size`, `refcount-cache-size` | bytes; see [`Qcow2Options::check`] |
//! | `l2-cache-entry-size` | bytes, see [`Qcow2Options::check_with_image`] |
//! | `cache-clean-interval` | seconds; 0 is never |
//!
//! `encrypt` is refused by name: there is no encryption here.

use serde::{Serialize, Serializer};

use super::{Backing, BlockdevOptions, Child, Children, Role};
use crate::error::{OptionError, Result};
use crate::visit::{Alternate, Reader, Word, words};

/// Smallest entry of the L2 cache, in bytes.
pub const MIN_L2_ENTRY: u64 = 512;

/// Options of `qcow2`. What is not given is up to the image or has QEMU's default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Options<N = BlockdevOptions> {
    /// The image.
    pub file: Child<N>,
    /// What is below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<Backing<N>>,
    /// Where its data is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<Child<N>>,
    /// Put refcounts off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Discards of a guest reach the storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_request: Option<bool>,
    /// Discards of a snapshot's clusters reach the storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_snapshot: Option<bool>,
    /// All other discards reach the storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass_discard_other: Option<bool>,
    /// Discarded clusters stay reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_no_unref: Option<bool>,
    /// Which metadata is protected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_check: Option<OverlapCheck>,
    /// Bytes for both caches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<u64>,
    /// Bytes for L2 tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_size: Option<u64>,
    /// How much of an L2 table is one entry of the cache, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_entry_size: Option<u64>,
    /// Bytes for refcount blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_cache_size: Option<u64>,
    /// After how many seconds without use an entry is dropped; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_clean_interval: Option<u32>,
}

words! {
    /// A set of metadata structures by name. Each contains the ones before.
    pub enum OverlapTemplate {
        /// No structure.
        None = "none",
        /// Header, active L1 table, refcount table, snapshot table, bitmap directory: what is
        /// checked in constant time.
        Constant = "constant",
        /// Active L2 tables, refcount blocks and inactive L1 tables, too: what is in memory.
        Cached = "cached",
        /// Inactive L2 tables, too, which must be read.
        All = "all",
    }
}

/// Which metadata no write may touch: a word, or a word and exceptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlapCheck {
    /// What holds where nothing else is said; `cached` when not given.
    pub template: Option<OverlapTemplate>,
    /// Exceptions, each on or off.
    pub exceptions: OverlapFlags,
}

/// One choice for each structure of an image's metadata; none: as the template says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OverlapFlags {
    /// The header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_header: Option<bool>,
    /// The L1 table in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l1: Option<bool>,
    /// L2 tables in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_l2: Option<bool>,
    /// The refcount table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_table: Option<bool>,
    /// Refcount blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcount_block: Option<bool>,
    /// The table of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_table: Option<bool>,
    /// L1 tables of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l1: Option<bool>,
    /// L2 tables of snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_l2: Option<bool>,
    /// The directory of bitmaps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap_directory: Option<bool>,
}

/// The structures that are protected, all said and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "it is a set, named as in the options"
)]
pub struct OverlapSet {
    /// The header.
    pub main_header: bool,
    /// The L1 table in use.
    pub active_l1: bool,
    /// L2 tables in use.
    pub active_l2: bool,
    /// The refcount table.
    pub refcount_table: bool,
    /// Refcount blocks.
    pub refcount_block: bool,
    /// The table of snapshots.
    pub snapshot_table: bool,
    /// L1 tables of snapshots.
    pub inactive_l1: bool,
    /// L2 tables of snapshots.
    pub inactive_l2: bool,
    /// The directory of bitmaps.
    pub bitmap_directory: bool,
}

/// What a rule for options needs to know of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Whether its data is in a file of its own.
    pub has_data_file: bool,
}

impl<N> Qcow2Options<N> {
    /// An image with nothing said about it.
    #[must_use]
    pub fn new(file: Child<N>) -> Self {
        Self {
            file,
            backing: None,
            data_file: None,
            lazy_refcounts: None,
            pass_discard_request: None,
            pass_discard_snapshot: None,
            pass_discard_other: None,
            discard_no_unref: None,
            overlap_check: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: None,
        }
    }

    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        let mut options = Self::new(children.required(reader, "file", Role::Storage)?);
        options.backing = children.backing(reader)?;
        options.lazy_refcounts = reader.boolean("lazy-refcounts")?;
        options.pass_discard_request = reader.boolean("pass-discard-request")?;
        options.pass_discard_snapshot = reader.boolean("pass-discard-snapshot")?;
        options.pass_discard_other = reader.boolean("pass-discard-other")?;
        options.discard_no_unref = reader.boolean("discard-no-unref")?;
        options.overlap_check = OverlapCheck::read(reader)?;
        options.cache_size = reader.not_negative("cache-size")?;
        options.l2_cache_size = reader.not_negative("l2-cache-size")?;
        options.l2_cache_entry_size = reader.not_negative("l2-cache-entry-size")?;
        options.refcount_cache_size = reader.not_negative("refcount-cache-size")?;
        options.cache_clean_interval = read_clean_interval(reader)?;
        reader.unsupported("encrypt")?;
        options.data_file = children.optional(reader, "data-file", Role::Storage)?;
        Ok(options)
    }

    /// Checks the rules that need no image: at most two of the three cache sizes, and no
    /// part larger than the whole.
    ///
    /// # Errors
    ///
    /// As the rules say.
    pub fn check(&self) -> Result<()> {
        let Some(whole) = self.cache_size else {
            return Ok(());
        };
        let too_large = |part: Option<u64>| part.is_some_and(|part| part > whole);
        if self.l2_cache_size.is_some() && self.refcount_cache_size.is_some() {
            Err(OptionError::ThreeCacheSizes)
        } else if too_large(self.l2_cache_size) {
            Err(OptionError::CacheTooLarge {
                part: "l2-cache-size",
            })
        } else if too_large(self.refcount_cache_size) {
            Err(OptionError::CacheTooLarge {
                part: "refcount-cache-size",
            })
        } else {
            Ok(())
        }
    }

    /// Checks the rules that need the image, in QEMU's order: entries of the L2 cache are a
    /// power of two from [`MIN_L2_ENTRY`] up to a cluster; a cache has at most 2^31 - 1
    /// entries; old images have neither lazy refcounts nor reserved discards; a data file is
    /// for images that have one.
    ///
    /// # Errors
    ///
    /// As the rules say.
    pub fn check_with_image(&self, image: ImageFacts) -> Result<()> {
        let entry = self.l2_cache_entry_size.unwrap_or(image.cluster_size);
        if !entry.is_power_of_two() || entry < MIN_L2_ENTRY || entry > image.cluster_size {
            return Err(OptionError::L2EntrySize {
                cluster: image.cluster_size,
            });
        }
        let too_many =
            |size: Option<u64>, entry: u64| size.is_some_and(|size| size / entry > MAX_ENTRIES);
        // QEMU cuts an L2 cache down to what the disk needs before it looks at its size.
        if too_many(self.refcount_cache_size, image.cluster_size) {
            return Err(OptionError::RefcountCacheTooBig);
        }
        if image.version < 3 && self.lazy_refcounts == Some(true) {
            return Err(OptionError::LazyRefcountsNeedV3);
        }
        if image.version < 3 && self.discard_no_unref == Some(true) {
            return Err(OptionError::NoUnrefNeedsV3);
        }
        if self.data_file.is_some() && !image.has_data_file {
            return Err(OptionError::NoDataFile);
        }
        Ok(())
    }
}

/// QEMU counts a cache's entries in a signed number of 32 bits.
const MAX_ENTRIES: u64 = (1 << 31) - 1;

fn read_clean_interval(reader: &mut Reader<'_>) -> Result<Option<u32>> {
    let Some(seconds) = reader.signed("cache-clean-interval")? else {
        return Ok(None);
    };
    u32::try_from(seconds)
        .map(Some)
        .map_err(|_| OptionError::CleanIntervalTooBig)
}

impl OverlapCheck {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        if reader.is_flat() {
            return Self::read_flat(reader);
        }
        match reader.alternate("overlap-check", "Qcow2OverlapChecks")? {
            None => Ok(None),
            Some(Alternate::Text(word)) => match OverlapTemplate::from_word(word) {
                Some(template) => Ok(Some(Self {
                    template: Some(template),
                    exceptions: OverlapFlags::default(),
                })),
                None => Err(OptionError::BadValue {
                    name: "overlap-check".to_owned(),
                    value: word.to_owned(),
                }),
            },
            Some(Alternate::Object(mut object)) => {
                let template = object.word("template")?;
                let exceptions = OverlapFlags::read(&mut object)?;
                object.finish()?;
                Ok(Some(Self {
                    template,
                    exceptions,
                }))
            }
        }
    }

    /// In the older interface the word and the object may both be there.
    fn read_flat(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let mode = reader.text("overlap-check")?;
        let Some(mut object) = reader.object("overlap-check")? else {
            return mode
                .map(|mode| Self::of_words(Some(&mode), None))
                .transpose();
        };
        let template = object.text("template")?;
        let mut check = Self::of_words(mode.as_deref(), template.as_deref())?;
        check.exceptions = OverlapFlags::read(&mut object)?;
        object.finish()?;
        Ok(Some(check))
    }

    fn of_words(mode: Option<&str>, template: Option<&str>) -> Result<Self> {
        if let (Some(mode), Some(template)) = (mode, template)
            && mode != template
        {
            return Err(OptionError::OverlapCheckConflict {
                mode: mode.to_owned(),
                template: template.to_owned(),
            });
        }
        let unknown = |word: &str| OptionError::OverlapCheck {
            value: word.to_owned(),
        };
        let word = |word: &str| OverlapTemplate::from_word(word).ok_or_else(|| unknown(word));
        Ok(Self {
            template: mode.or(template).map(word).transpose()?,
            exceptions: OverlapFlags::default(),
        })
    }

    /// What is protected.
    #[must_use]
    pub fn settle(&self) -> OverlapSet {
        let template = self.template.unwrap_or(OverlapTemplate::Cached);
        let from = |least: OverlapTemplate| template.rank() >= least.rank();
        let constant = from(OverlapTemplate::Constant);
        let cached = from(OverlapTemplate::Cached);
        let flags = &self.exceptions;
        OverlapSet {
            main_header: flags.main_header.unwrap_or(constant),
            active_l1: flags.active_l1.unwrap_or(constant),
            active_l2: flags.active_l2.unwrap_or(cached),
            refcount_table: flags.refcount_table.unwrap_or(constant),
            refcount_block: flags.refcount_block.unwrap_or(cached),
            snapshot_table: flags.snapshot_table.unwrap_or(constant),
            inactive_l1: flags.inactive_l1.unwrap_or(cached),
            inactive_l2: flags.inactive_l2.unwrap_or(from(OverlapTemplate::All)),
            bitmap_directory: flags.bitmap_directory.unwrap_or(constant),
        }
    }
}

impl OverlapTemplate {
    /// How much it contains.
    fn rank(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Constant => 1,
            Self::Cached => 2,
            Self::All => 3,
        }
    }
}

impl OverlapFlags {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            main_header: reader.boolean("main-header")?,
            active_l1: reader.boolean("active-l1")?,
            active_l2: reader.boolean("active-l2")?,
            refcount_table: reader.boolean("refcount-table")?,
            refcount_block: reader.boolean("refcount-block")?,
            snapshot_table: reader.boolean("snapshot-table")?,
            inactive_l1: reader.boolean("inactive-l1")?,
            inactive_l2: reader.boolean("inactive-l2")?,
            bitmap_directory: reader.boolean("bitmap-directory")?,
        })
    }
}

impl Serialize for OverlapCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Object {
            #[serde(skip_serializing_if = "Option::is_none")]
            template: Option<OverlapTemplate>,
            #[serde(flatten)]
            exceptions: OverlapFlags,
        }
        match self.template {
            Some(template) if self.exceptions == OverlapFlags::default() => {
                template.serialize(serializer)
            }
            template => Object {
                template,
                exceptions: self.exceptions,
            }
            .serialize(serializer),
        }
    }
}
