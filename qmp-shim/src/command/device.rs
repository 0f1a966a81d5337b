//! Devices that a machine sees, and their media. A device is found by its own id, or by the
//! older name of its drive.

use serde_json::{Map, Value};

use super::argument::{Member, Members, arguments, objects};
use crate::error::Result;
use crate::visit::{Reader, words};

arguments! {
    /// Arguments of `device_del`.
    pub struct DeviceDel {
        /// The device.
        id: String = "id",
    }

    /// Arguments of `eject`.
    pub struct Eject {
        /// The drive.
        device: Option<String> = "device",
        /// Or the device.
        id: Option<String> = "id",
        /// Also if the guest has locked the tray; default false.
        force: Option<bool> = "force",
    }

    /// Arguments of `blockdev-open-tray`.
    pub struct BlockdevOpenTray {
        /// The drive.
        device: Option<String> = "device",
        /// Or the device.
        id: Option<String> = "id",
        /// Also if the guest has locked the tray; default false.
        force: Option<bool> = "force",
    }

    /// Arguments of `blockdev-close-tray`.
    pub struct BlockdevCloseTray {
        /// The drive.
        device: Option<String> = "device",
        /// Or the device.
        id: Option<String> = "id",
    }

    /// Arguments of `blockdev-remove-medium`.
    pub struct BlockdevRemoveMedium {
        /// The device.
        id: String = "id",
    }

    /// Arguments of `blockdev-insert-medium`.
    pub struct BlockdevInsertMedium {
        /// The device.
        id: String = "id",
        /// The node that is put in.
        node_name: String = "node-name",
    }

    /// Arguments of `blockdev-change-medium`.
    pub struct BlockdevChangeMedium {
        /// The drive.
        device: Option<String> = "device",
        /// Or the device.
        id: Option<String> = "id",
        /// The image that is put in.
        filename: String = "filename",
        /// Its format; default: as the image says.
        format: Option<String> = "format",
        /// Also if the guest has locked the tray; default false.
        force: Option<bool> = "force",
        /// Whether it can be written; default retain.
        read_only_mode: Option<BlockdevChangeReadOnlyMode> = "read-only-mode",
    }

    /// Arguments of `block_set_io_throttle`. All limits are replaced; 0 is no limit.
    pub struct BlockSetIoThrottle {
        /// The drive.
        device: Option<String> = "device",
        /// Or the device.
        id: Option<String> = "id",
        /// Bytes a second.
        bps: i64 = "bps",
        /// Bytes a second that are read.
        bps_rd: i64 = "bps_rd",
        /// Bytes a second that are written.
        bps_wr: i64 = "bps_wr",
        /// Requests a second.
        iops: i64 = "iops",
        /// Reads a second.
        iops_rd: i64 = "iops_rd",
        /// Writes a second.
        iops_wr: i64 = "iops_wr",
        /// Bytes a second in a burst.
        bps_max: Option<i64> = "bps_max",
        /// Bytes a second that are read in a burst.
        bps_rd_max: Option<i64> = "bps_rd_max",
        /// Bytes a second that are written in a burst.
        bps_wr_max: Option<i64> = "bps_wr_max",
        /// Requests a second in a burst.
        iops_max: Option<i64> = "iops_max",
        /// Reads a second in a burst.
        iops_rd_max: Option<i64> = "iops_rd_max",
        /// Writes a second in a burst.
        iops_wr_max: Option<i64> = "iops_wr_max",
        /// Length of a burst in seconds.
        bps_max_length: Option<i64> = "bps_max_length",
        /// Length of a burst in seconds.
        bps_rd_max_length: Option<i64> = "bps_rd_max_length",
        /// Length of a burst in seconds.
        bps_wr_max_length: Option<i64> = "bps_wr_max_length",
        /// Length of a burst in seconds.
        iops_max_length: Option<i64> = "iops_max_length",
        /// Length of a burst in seconds.
        iops_rd_max_length: Option<i64> = "iops_rd_max_length",
        /// Length of a burst in seconds.
        iops_wr_max_length: Option<i64> = "iops_wr_max_length",
        /// Bytes above which a request counts as more than one.
        iops_size: Option<i64> = "iops_size",
        /// The group that shares the limits; default: the drive alone.
        group: Option<String> = "group",
    }

    /// Arguments of `block-latency-histogram-set`. Boundaries are in nanoseconds; that they
    /// rise is checked when the command runs. With only an id, histograms end.
    pub struct BlockLatencyHistogramSet {
        /// The device.
        id: String = "id",
        /// For all kinds of requests that have none of their own.
        boundaries: Option<Vec<u64>> = "boundaries",
        /// For reads.
        boundaries_read: Option<Vec<u64>> = "boundaries-read",
        /// For writes.
        boundaries_write: Option<Vec<u64>> = "boundaries-write",
        /// For appending to zones.
        boundaries_zap: Option<Vec<u64>> = "boundaries-zap",
        /// For flushes.
        boundaries_flush: Option<Vec<u64>> = "boundaries-flush",
    }
}

objects! { DeviceAdd, }

words! {
    /// Whether a new medium can be written.
    pub enum BlockdevChangeReadOnlyMode {
        /// As the one before.
        Retain = "retain",
        /// No.
        ReadOnly = "read-only",
        /// Yes.
        ReadWrite = "read-write",
    }
}

/// Arguments of `device_add`: whatever the device has, which no schema knows.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceAdd {
    /// What kind of device it is.
    pub driver: String,
    /// Where it is plugged in.
    pub bus: Option<String>,
    /// What it is called.
    pub id: Option<String>,
    /// All members, with the ones above.
    pub properties: Map<String, Value>,
}

impl Members for DeviceAdd {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            driver: Member::read_member(reader, "driver")?,
            bus: Member::read_member(reader, "bus")?,
            id: Member::read_member(reader, "id")?,
            properties: reader.all().clone(),
        })
    }
}
