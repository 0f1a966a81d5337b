//! Nodes: made, changed, taken away, and asked about.

use super::argument::{Argument, Arguments, arguments, read_list};
use crate::blockdev::BlockdevOptions;
use crate::error::Result;
use crate::visit::Reader;

arguments! {
    /// Arguments of `blockdev-del`.
    pub struct BlockdevDel {
        /// The node.
        node_name: String = "node-name",
    }

    /// Arguments of `blockdev-reopen`.
    pub struct BlockdevReopen {
        /// The nodes, each with all of its options. The list may be empty, which QEMU dies of.
        options: Vec<BlockdevOptions> = "options",
    }

    /// Arguments of `blockdev-set-active`.
    pub struct BlockdevSetActive {
        /// The node; without one: all.
        node_name: Option<String> = "node-name",
        /// Whether this process, and not another one, owns the image.
        active: bool = "active",
    }

    /// Arguments of `block_resize`.
    pub struct BlockResize {
        /// The device.
        device: Option<String> = "device",
        /// Or the node.
        node_name: Option<String> = "node-name",
        /// The new size in bytes. A negative one is refused when the command runs.
        size: i64 = "size",
    }

    /// Arguments of `block-set-write-threshold`.
    pub struct BlockSetWriteThreshold {
        /// The node.
        node_name: String = "node-name",
        /// Offset in bytes above which a write is reported; 0: never.
        write_threshold: u64 = "write-threshold",
    }

    /// Arguments of `x-blockdev-set-iothread`.
    pub struct XBlockdevSetIothread {
        /// The node.
        node_name: String = "node-name",
        /// Where its requests run.
        iothread: StrOrNull = "iothread",
        /// Also if something uses the node.
        force: Option<bool> = "force",
    }

    /// Arguments of `query-named-block-nodes`.
    pub struct QueryNamedBlockNodes {
        /// Say nothing of backing files inside of an entry.
        flat: Option<bool> = "flat",
    }

    /// Arguments of `query-blockstats`.
    pub struct QueryBlockstats {
        /// All nodes instead of the devices.
        query_nodes: Option<bool> = "query-nodes",
    }

    /// Arguments of `x-query-latency-histograms`, which QEMU 10.0 does not have.
    pub struct XQueryLatencyHistograms {
        /// Whether the next answer counts from this one on.
        reset: Option<bool> = "reset",
    }
}

/// A name, or nothing in particular.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StrOrNull {
    /// A name.
    Str(String),
    /// Nothing.
    Null,
}

impl Argument for StrOrNull {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        let value = reader.text_or_null(name, "StrOrNull")?;
        Ok(value.map(|text| text.map_or(Self::Null, Self::Str)))
    }
}

impl Argument for Vec<BlockdevOptions> {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        read_list(reader, name, BlockdevOptions::read)
    }
}

/// Only reading: [`BlockdevOptions::check`] is for when the command runs.
impl Arguments for BlockdevOptions {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        Self::read(reader)
    }
}
