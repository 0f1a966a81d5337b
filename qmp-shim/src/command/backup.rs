//! `blockdev-backup` and `drive-backup`.

use super::argument::arguments;
use super::snapshot::NewImageMode;
use crate::blockdev::OnCbwError;
use crate::visit::words;

words! {
    /// What of a disk is copied.
    pub enum MirrorSyncMode {
        /// What is in the topmost image.
        Top = "top",
        /// Everything.
        Full = "full",
        /// Nothing but what the guest overwrites.
        None = "none",
        /// What a bitmap says, the bitmap being cleared on success.
        Incremental = "incremental",
        /// What a bitmap says.
        Bitmap = "bitmap",
    }
}

words! {
    /// What happens to a job's bitmap when the job ends.
    pub enum BitmapSyncMode {
        /// What was copied is cleared if all of it was.
        OnSuccess = "on-success",
        /// It stays as it is.
        Never = "never",
        /// What was copied is cleared.
        Always = "always",
    }
}

words! {
    /// What an error of a job's reads or writes does.
    pub enum BlockdevOnError {
        /// The job fails.
        Report = "report",
        /// The job tries again, without end.
        Ignore = "ignore",
        /// Without space the job stops, otherwise it fails.
        Enospc = "enospc",
        /// The job stops.
        Stop = "stop",
        /// As the device says; a job of its own: as `enospc`.
        Auto = "auto",
    }
}

arguments! {
    /// How a backup does its work.
    pub struct BackupPerf {
        /// Let the host copy.
        use_copy_range: Option<bool> = "use-copy-range",
        /// Requests at a time.
        max_workers: Option<i64> = "max-workers",
        /// Bytes in a request; 0 is no limit.
        max_chunk: Option<i64> = "max-chunk",
        /// The least size of a cluster, in bytes.
        min_cluster_size: Option<u64> = "min-cluster-size",
        /// What 99 of 100 guest requests may take while the disk is copied, in
        /// nanoseconds; 0 is any time. QEMU 10.0 does not have this.
        latency_target: Option<i64> = "latency-target",
    }
}

/// Declares the arguments of a backup: what both commands have, and then their own.
macro_rules! backup_arguments {
    (
        $(#[$attribute:meta])*
        pub struct $type:ident {
            $($(#[$doc:meta])* $field:ident: $member:ty = $name:literal,)*
        }
    ) => {
        arguments! {
            $(#[$attribute])*
            ///
            /// Numbers are as given; whether they make sense is checked when the command runs.
            pub struct $type {
                /// Id of the job; without one it is the id of the device.
                job_id: Option<String> = "job-id",
                /// What is copied: a device or a node.
                device: String = "device",
                /// Which part of it.
                sync: MirrorSyncMode = "sync",
                /// Bytes a second; 0 is no limit.
                speed: Option<i64> = "speed",
                /// Name of a bitmap of the source.
                bitmap: Option<String> = "bitmap",
                /// What happens to the bitmap.
                bitmap_mode: Option<BitmapSyncMode> = "bitmap-mode",
                /// Write compressed data.
                compress: Option<bool> = "compress",
                /// What an error of the source does.
                on_source_error: Option<BlockdevOnError> = "on-source-error",
                /// What an error of the target does.
                on_target_error: Option<BlockdevOnError> = "on-target-error",
                /// Who pays when old data cannot be saved. QEMU 10.0 has this only on its filter.
                on_cbw_error: Option<OnCbwError> = "on-cbw-error",
                /// After how many seconds saving counts as failed; 0 is never. QEMU 10.0 has
                /// this only on its filter.
                cbw_timeout: Option<u32> = "cbw-timeout",
                /// Bytes of old data that may be in memory on their way to the target; 0 is none.
                /// QEMU 10.0 has no such buffer.
                save_buffer: Option<u64> = "save-buffer",
                /// The job ends without `job-finalize`; default true.
                auto_finalize: Option<bool> = "auto-finalize",
                /// The job goes without `job-dismiss`; default true.
                auto_dismiss: Option<bool> = "auto-dismiss",
                /// Node-name of the filter.
                filter_node_name: Option<String> = "filter-node-name",
                /// Discard what has been copied from the source.
                discard_source: Option<bool> = "discard-source",
                /// How the work is done.
                x_perf: Option<BackupPerf> = "x-perf",
                $($(#[$doc])* $field: $member = $name,)*
            }
        }
    };
}

backup_arguments! {
    /// Arguments of `blockdev-backup`.
    pub struct BlockdevBackup {
        /// Where the copy goes: a device or a node.
        target: String = "target",
    }
}

backup_arguments! {
    /// Arguments of `drive-backup`.
    pub struct DriveBackup {
        /// Where the copy goes: the name of a file.
        target: String = "target",
        /// Format of the file; default: as the source, or as the file says.
        format: Option<String> = "format",
        /// Whether the file is made; default: it is.
        mode: Option<NewImageMode> = "mode",
    }
}
