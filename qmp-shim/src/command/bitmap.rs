//! Dirty bitmaps.

use super::argument::{Argument, Arguments, arguments};
use crate::error::Result;
use crate::visit::{Alternate, Reader};

arguments! {
    /// A bitmap by node and name.
    pub struct BlockDirtyBitmap {
        /// Its node or device.
        node: String = "node",
        /// Its name.
        name: String = "name",
    }

    /// Arguments of `block-dirty-bitmap-add`.
    pub struct BlockDirtyBitmapAdd {
        /// Its node or device.
        node: String = "node",
        /// Its name.
        name: String = "name",
        /// Bytes that one bit stands for; whether it is a power of two is checked when the
        /// command runs.
        granularity: Option<u32> = "granularity",
        /// Keep it in the image.
        persistent: Option<bool> = "persistent",
        /// Make it without recording.
        disabled: Option<bool> = "disabled",
    }

    /// Arguments of `block-dirty-bitmap-merge`.
    pub struct BlockDirtyBitmapMerge {
        /// Node or device of the target.
        node: String = "node",
        /// Name of the bitmap that is added to.
        target: String = "target",
        /// What is added. The list may be empty, which QEMU dies of.
        bitmaps: Vec<BlockDirtyBitmapOrStr> = "bitmaps",
    }
}

/// Arguments of `block-dirty-bitmap-remove`.
pub type BlockDirtyBitmapRemove = BlockDirtyBitmap;
/// Arguments of `block-dirty-bitmap-clear`.
pub type BlockDirtyBitmapClear = BlockDirtyBitmap;
/// Arguments of `block-dirty-bitmap-enable`.
pub type BlockDirtyBitmapEnable = BlockDirtyBitmap;
/// Arguments of `block-dirty-bitmap-disable`.
pub type BlockDirtyBitmapDisable = BlockDirtyBitmap;
/// Arguments of `x-debug-block-dirty-bitmap-sha256`.
pub type XDebugBlockDirtyBitmapSha256 = BlockDirtyBitmap;

/// A bitmap of the node at hand, or of another.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockDirtyBitmapOrStr {
    /// Of the node at hand, by name.
    Local(String),
    /// Of any node.
    External(BlockDirtyBitmap),
}

impl Argument for Vec<BlockDirtyBitmapOrStr> {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        let Some(elements) = reader.alternates(name, "BlockDirtyBitmapOrStr")? else {
            return Ok(None);
        };
        let read = |element: Result<Alternate<'_>>| match element? {
            Alternate::Text(name) => Ok(BlockDirtyBitmapOrStr::Local(name.to_owned())),
            Alternate::Object(inner) => {
                BlockDirtyBitmap::read_object(inner).map(BlockDirtyBitmapOrStr::External)
            }
        };
        let elements = elements.into_iter().map(read);
        elements.collect::<Result<_>>().map(Some)
    }
}
