//! `copy-before-write`, which saves old data before it is overwritten, and
//! `snapshot-access`, which shows what it saved.

use serde::Serialize;

use super::{BlockdevOptions, Child, Children, Role};
use crate::error::{OptionError, Result};
use crate::visit::{Reader, words};

/// Largest `min-cluster-size`: clusters are counted in 32 bits inside of QEMU, which dies
/// of a larger one.
pub const MAX_CLUSTER: u64 = 1 << 31;

words! {
    /// Who pays when old data cannot be saved.
    pub enum OnCbwError {
        /// The guest's write fails.
        BreakGuestWrite = "break-guest-write",
        /// The snapshot is lost.
        BreakSnapshot = "break-snapshot",
    }
}

/// Options of `copy-before-write`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CbwOptions<N = BlockdevOptions> {
    /// The disk that is written to.
    pub file: Child<N>,
    /// Where old data goes.
    pub target: Child<N>,
    /// Which clusters belong to the snapshot; all of them when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmap: Option<BitmapRef>,
    /// What happens when old data cannot be saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_cbw_error: Option<OnCbwError>,
    /// After how many seconds saving counts as failed; 0 or not given: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cbw_timeout: Option<u32>,
    /// The least size of a cluster: 0 or a power of two up to [`MAX_CLUSTER`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cluster_size: Option<u64>,
    /// Bytes of old data that may be in memory on their way to the target; 0: none. QEMU
    /// 10.0 has no such buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_buffer: Option<u64>,
}

/// A dirty bitmap by node and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BitmapRef {
    /// The node that it is on.
    pub node: String,
    /// Its name.
    pub name: String,
}

/// Options of `snapshot-access`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotAccessOptions<N = BlockdevOptions> {
    /// The filter whose snapshot is read.
    pub file: Child<N>,
}

impl<N> CbwOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        // This driver is newer than the older interface and converts alike behind both.
        reader.convert_as_text();
        Ok(Self {
            file: children.required(reader, "file", Role::Storage)?,
            target: children.required(reader, "target", Role::Data)?,
            bitmap: BitmapRef::read(reader)?,
            on_cbw_error: reader.word("on-cbw-error")?,
            cbw_timeout: reader.unsigned_32("cbw-timeout")?,
            min_cluster_size: reader.size("min-cluster-size")?,
            save_buffer: reader.size("save-buffer")?,
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        check_cluster_size(self.min_cluster_size.unwrap_or(0))?;
        check_save_buffer(self.save_buffer, self.on_cbw_error)
    }
}

impl<N> SnapshotAccessOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        Ok(Self {
            file: children.required(reader, "file", Role::Storage)?,
        })
    }
}

impl BitmapRef {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        let Some(mut bitmap) = reader.object("bitmap")? else {
            return Ok(None);
        };
        let read = Self {
            node: bitmap.required("node", Reader::text)?,
            name: bitmap.required("name", Reader::text)?,
        };
        bitmap.finish()?;
        Ok(Some(read))
    }
}

/// What is in memory only can be lost, and then the guest has been answered already.
///
/// # Errors
///
/// [`OptionError::SaveBuffer`].
pub fn check_save_buffer(save_buffer: Option<u64>, on_cbw_error: Option<OnCbwError>) -> Result<()> {
    match (save_buffer, on_cbw_error) {
        (None | Some(0), _) | (_, Some(OnCbwError::BreakSnapshot)) => Ok(()),
        _ => Err(OptionError::SaveBuffer),
    }
}

/// QEMU checks the range of 63 bits, then the form, and then dies of sizes from 2^32 on.
fn check_cluster_size(size: u64) -> Result<()> {
    let signed_max = i64::MAX.cast_unsigned();
    if size > signed_max {
        return Err(OptionError::ClusterTooLarge {
            size,
            max: signed_max,
        });
    }
    if size != 0 && !size.is_power_of_two() {
        return Err(OptionError::ClusterNotPowerOfTwo);
    }
    if size > MAX_CLUSTER {
        return Err(OptionError::ClusterTooLarge {
            size,
            max: MAX_CLUSTER,
        });
    }
    Ok(())
}
