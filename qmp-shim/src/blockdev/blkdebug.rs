//! `blkdebug`: a filter that makes requests fail, at events of the format above it.
//!
//! | option | meaning |
//! | --- | --- |
//! | `image` | the node below |
//! | `config` | a file with rules, see [`config`]; they come before the rules given here |
//! | `align` | the request alignment in bytes: a power of two |
//! | `max-transfer`, `opt-write-zero`, `max-write-zero`, `opt-discard`, `max-discard` | limits of requests in bytes |
//! | `inject-error` | rules by which requests fail |
//! | `set-state` | rules by which the state changes |
//! | `take-child-perms`, `unshare-child-perms` | permissions on the image, beyond the needed ones |
//!
//! A rule belongs to an event and to a state. The state is a number, 1 in the beginning.
//! The older interface has `x-image`, too: the image by its file name.

use serde::Serialize;

use super::{BlockdevOptions, Child, Children, Role};
use crate::error::{OptionError, Result};
use crate::visit::{Reader, words};

pub mod config;

/// A limit must be below this: QEMU's largest number of 32 bits.
pub const LIMIT_BOUND: u64 = (1 << 31) - 1;

/// Options of `blkdebug`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlkdebugOptions<N = BlockdevOptions> {
    /// The node below.
    pub image: Child<N>,
    /// Path of a file with rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Alignment and limits of requests.
    #[serde(flatten)]
    pub limits: RequestLimits,
    /// Rules by which requests fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inject_error: Vec<InjectError>,
    /// Rules by which the state changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_state: Vec<SetState>,
    /// Permissions to take on the image, beyond the needed ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub take_child_perms: Vec<Permission>,
    /// Permissions not to share, beyond the needed ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unshare_child_perms: Vec<Permission>,
}

/// Alignment and limits of requests, in bytes. 0 is the same as not given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestLimits {
    /// What requests are aligned to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align: Option<u64>,
    /// The longest read or write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_transfer: Option<u64>,
    /// The best length of a write of zeroes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_write_zero: Option<u64>,
    /// The longest write of zeroes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_write_zero: Option<u64>,
    /// The best length of a discard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_discard: Option<u64>,
    /// The longest discard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_discard: Option<u64>,
}

/// A rule by which requests fail, once its event has come in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InjectError {
    /// The event that makes the rule active.
    pub event: Event,
    /// In which state; 0 is any. 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<i32>,
    /// Which requests fail; none: all but queries of the block status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iotype: Option<IoType>,
    /// The error number, `EIO` (5) when not given. With 0 matching requests succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// A request must contain this sector of 512 bytes; -1 is any. -1 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector: Option<i64>,
    /// The rule is gone after one failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub once: Option<bool>,
    /// The request fails before anything else can run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immediately: Option<bool>,
}

/// A rule by which the state changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SetState {
    /// The event.
    pub event: Event,
    /// In which state; 0 is any. 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<i32>,
    /// The state from then on.
    pub new_state: i32,
}

words! {
    /// What a request does.
    pub enum IoType {
        /// It reads.
        Read = "read",
        /// It writes.
        Write = "write",
        /// It writes zeroes.
        WriteZeroes = "write-zeroes",
        /// It discards.
        Discard = "discard",
        /// It flushes.
        Flush = "flush",
        /// It asks what is allocated.
        BlockStatus = "block-status",
    }
}

words! {
    /// A permission on a node.
    pub enum Permission {
        /// Reads give what was written.
        ConsistentRead = "consistent-read",
        /// Visible data may change.
        Write = "write",
        /// Writes that change nothing visible.
        WriteUnchanged = "write-unchanged",
        /// The length may change.
        Resize = "resize",
    }
}

words! {
    /// An event in the life of an image. The names are QEMU's and say where they come from.
    pub enum Event {
        /// An entry of the L1 table is written.
        L1Update = "l1_update",
        /// Room for a larger L1 table is taken.
        L1GrowAllocTable = "l1_grow_alloc_table",
        /// The larger L1 table is written.
        L1GrowWriteTable = "l1_grow_write_table",
        /// The header gets the larger L1 table.
        L1GrowActivateTable = "l1_grow_activate_table",
        /// An L2 table is read.
        L2Load = "l2_load",
        /// An L2 table is written.
        L2Update = "l2_update",
        /// A compressed cluster gets its L2 entry.
        L2UpdateCompressed = "l2_update_compressed",
        /// An L2 table is read to be copied.
        L2AllocCowRead = "l2_alloc_cow_read",
        /// A new L2 table is written.
        L2AllocWrite = "l2_alloc_write",
        /// Guest data is read.
        ReadAio = "read_aio",
        /// Guest data is read from the backing file.
        ReadBackingAio = "read_backing_aio",
        /// A compressed cluster is read.
        ReadCompressed = "read_compressed",
        /// Guest data is written.
        WriteAio = "write_aio",
        /// A compressed cluster is written.
        WriteCompressed = "write_compressed",
        /// The state of a machine is read.
        VmstateLoad = "vmstate_load",
        /// The state of a machine is written.
        VmstateSave = "vmstate_save",
        /// Old data around a write is read.
        CowRead = "cow_read",
        /// Old data around a write is written.
        CowWrite = "cow_write",
        /// The refcount table is read.
        ReftableLoad = "reftable_load",
        /// The refcount table grows.
        ReftableGrow = "reftable_grow",
        /// The refcount table is written.
        ReftableUpdate = "reftable_update",
        /// A refcount block is read.
        RefblockLoad = "refblock_load",
        /// A refcount block is written.
        RefblockUpdate = "refblock_update",
        /// Part of a refcount block is written.
        RefblockUpdatePart = "refblock_update_part",
        /// A refcount block is looked for, to be changed.
        RefblockAlloc = "refblock_alloc",
        /// The refcount table gets a new block.
        RefblockAllocHookup = "refblock_alloc_hookup",
        /// A new refcount block is written.
        RefblockAllocWrite = "refblock_alloc_write",
        /// The blocks of a larger refcount table are written.
        RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
        /// The larger refcount table is written.
        RefblockAllocWriteTable = "refblock_alloc_write_table",
        /// The header gets the larger refcount table.
        RefblockAllocSwitchTable = "refblock_alloc_switch_table",
        /// Clusters are taken.
        ClusterAlloc = "cluster_alloc",
        /// Part of a cluster is taken.
        ClusterAllocBytes = "cluster_alloc_bytes",
        /// Clusters are freed.
        ClusterFree = "cluster_free",
        /// Caches of the format are written.
        FlushToOs = "flush_to_os",
        /// The storage is flushed.
        FlushToDisk = "flush_to_disk",
        /// The unaligned head of a write is to be read.
        PwritevRmwHead = "pwritev_rmw_head",
        /// It was read.
        PwritevRmwAfterHead = "pwritev_rmw_after_head",
        /// The unaligned tail of a write is to be read.
        PwritevRmwTail = "pwritev_rmw_tail",
        /// It was read.
        PwritevRmwAfterTail = "pwritev_rmw_after_tail",
        /// An aligned write begins.
        Pwritev = "pwritev",
        /// An aligned write of zeroes begins.
        PwritevZero = "pwritev_zero",
        /// A write has ended.
        PwritevDone = "pwritev_done",
        /// An image is emptied.
        EmptyImagePrepare = "empty_image_prepare",
        /// The end of the L1 table is cleared.
        L1ShrinkWriteTable = "l1_shrink_write_table",
        /// L2 tables behind the end are freed.
        L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
        /// What was read is copied.
        CorWrite = "cor_write",
        /// A new cluster is zeroed as a whole.
        ClusterAllocSpace = "cluster_alloc_space",
        /// The filter was opened. It comes once.
        None = "none",
    }
}

impl<N> BlkdebugOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        Ok(Self {
            image: children.required(reader, "image", Role::Storage)?,
            config: reader.text("config")?,
            limits: RequestLimits {
                align: reader.not_negative("align")?,
                max_transfer: reader.not_negative("max-transfer")?,
                opt_write_zero: reader.not_negative("opt-write-zero")?,
                max_write_zero: reader.not_negative("max-write-zero")?,
                opt_discard: reader.not_negative("opt-discard")?,
                max_discard: reader.not_negative("max-discard")?,
            },
            inject_error: read_rules(reader, "inject-error", InjectError::read)?,
            set_state: read_rules(reader, "set-state", SetState::read)?,
            take_child_perms: reader
                .list_of_words("take-child-perms")?
                .unwrap_or_default(),
            unshare_child_perms: reader
                .list_of_words("unshare-child-perms")?
                .unwrap_or_default(),
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        self.limits.check(1)
    }
}

fn read_rules<T>(
    reader: &mut Reader<'_>,
    name: &'static str,
    read: fn(&mut Reader<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let rules = reader.objects(name)?.unwrap_or_default();
    let read = |rule: Result<Reader<'_>>| {
        let mut rule = rule?;
        let read = read(&mut rule)?;
        rule.finish()?;
        Ok(read)
    };
    rules.into_iter().map(read).collect()
}

fn read_event(reader: &mut Reader<'_>) -> Result<Event> {
    if reader.is_flat() {
        return reader.word("event")?.ok_or(OptionError::NoEvent);
    }
    reader.required("event", Reader::word)
}

/// QEMU cuts larger numbers off; they can mean nothing good.
fn read_i32(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<i32>> {
    let Some(value) = reader.signed(name)? else {
        return Ok(None);
    };
    let number = i32::try_from(value);
    number
        .map(Some)
        .map_err(|_| OptionError::OutOfRange { name, value })
}

impl InjectError {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            event: read_event(reader)?,
            state: read_i32(reader, "state")?,
            iotype: reader.word("iotype")?,
            errno: read_i32(reader, "errno")?,
            sector: reader.signed("sector")?,
            once: reader.boolean("once")?,
            immediately: reader.boolean("immediately")?,
        })
    }
}

impl SetState {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let event = read_event(reader)?;
        let state = read_i32(reader, "state")?;
        let is_flat = reader.is_flat();
        let new_state = reader.required("new_state", |reader, name| {
            let given = read_i32(reader, name)?;
            Ok(if is_flat { given.or(Some(0)) } else { given })
        })?;
        Ok(Self {
            event,
            state,
            new_state,
        })
    }
}

impl RequestLimits {
    /// Checks what goes together, above an image whose requests are aligned to `below`
    /// bytes. Called with 1 before the image is known, and by the engine when it is.
    ///
    /// # Errors
    ///
    /// [`OptionError::Constraint`] with the first limit that cannot be kept.
    pub fn check(&self, below: u64) -> Result<()> {
        let value = |given: Option<u64>| given.filter(|&given| given != 0);
        let refuse = |name, value| Err(OptionError::Constraint { name, value });
        if let Some(align) = value(self.align)
            && (align >= LIMIT_BOUND || !align.is_power_of_two())
        {
            return refuse("align", align);
        }
        let align = value(self.align).unwrap_or(1).max(below).max(1);
        for (name, given, unit) in [
            ("max-transfer", self.max_transfer, None),
            ("opt-write-zero", self.opt_write_zero, None),
            ("max-write-zero", self.max_write_zero, self.opt_write_zero),
            ("opt-discard", self.opt_discard, None),
            ("max-discard", self.max_discard, self.opt_discard),
        ] {
            let Some(given) = value(given) else { continue };
            let unit = value(unit).unwrap_or(1).max(align);
            if given >= LIMIT_BOUND || given % unit != 0 {
                return refuse(name, given);
            }
        }
        Ok(())
    }
}
