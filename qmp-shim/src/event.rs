//! Events: what is reported to every monitor without having been asked for.

use serde_json::{Value, json};

use crate::command::JobType;
use crate::visit::words;

words! {
    /// Where a job stands.
    pub enum JobStatus {
        /// It is not a job yet.
        Undefined = "undefined",
        /// It is made, but does nothing yet.
        Created = "created",
        /// It works.
        Running = "running",
        /// It works again when somebody says so.
        Paused = "paused",
        /// What is left is to be completed.
        Ready = "ready",
        /// It was ready and is paused.
        Standby = "standby",
        /// It waits for the other jobs of its transaction.
        Waiting = "waiting",
        /// It waits to be finalized.
        Pending = "pending",
        /// It has failed or was cancelled, and cleans up.
        Aborting = "aborting",
        /// It is over, but can still be asked about.
        Concluded = "concluded",
        /// It is gone.
        Null = "null",
    }
}

words! {
    /// What failed.
    pub enum IoOperationType {
        /// A read.
        Read = "read",
        /// A write.
        Write = "write",
    }
}

words! {
    /// What was done about an error.
    pub enum BlockErrorAction {
        /// Nothing.
        Ignore = "ignore",
        /// It was passed on.
        Report = "report",
        /// The job or machine was stopped.
        Stop = "stop",
    }
}

words! {
    /// Why everything ends.
    pub enum ShutdownCause {
        /// Nobody knows.
        None = "none",
        /// The host failed.
        HostError = "host-error",
        /// A monitor said `quit`.
        HostQmpQuit = "host-qmp-quit",
        /// A monitor said `system_reset`.
        HostQmpSystemReset = "host-qmp-system-reset",
        /// A signal came.
        HostSignal = "host-signal",
        /// A window was closed.
        HostUi = "host-ui",
        /// The guest switched itself off.
        GuestShutdown = "guest-shutdown",
        /// The guest started anew.
        GuestReset = "guest-reset",
        /// The guest failed.
        GuestPanic = "guest-panic",
        /// A part of the machine started anew.
        SubsystemReset = "subsystem-reset",
        /// A snapshot is loaded.
        SnapshotLoad = "snapshot-load",
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A job has another status.
    JobStatusChange {
        /// The job.
        id: String,
        /// The status that it has now.
        status: JobStatus,
    },
    /// A job is over, and was not cancelled.
    BlockJobCompleted {
        /// What the job does.
        kind: JobType,
        /// Its id.
        device: String,
        /// Bytes to be done in all.
        len: i64,
        /// Bytes that are done.
        offset: i64,
        /// Its limit in bytes a second; 0 is none.
        speed: i64,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// A job was cancelled.
    BlockJobCancelled {
        /// What the job does.
        kind: JobType,
        /// Its id.
        device: String,
        /// Bytes to be done in all.
        len: i64,
        /// Bytes that are done.
        offset: i64,
        /// Its limit in bytes a second; 0 is none.
        speed: i64,
    },
    /// A read or write of a job failed.
    BlockJobError {
        /// The job.
        device: String,
        /// What failed.
        operation: IoOperationType,
        /// What was done about it.
        action: BlockErrorAction,
    },
    /// A job waits to be finalized.
    BlockJobPending {
        /// What the job does.
        kind: JobType,
        /// Its id.
        id: String,
    },
    /// An image turned out to be broken.
    BlockImageCorrupted {
        /// The device; empty if there is none.
        device: String,
        /// The node.
        node_name: Option<String>,
        /// What is wrong.
        msg: String,
        /// Where the access was that showed it, in bytes.
        offset: Option<i64>,
        /// How long it was, in bytes.
        size: Option<i64>,
        /// Whether the image is unusable from now on.
        fatal: bool,
    },
    /// A write went beyond a threshold, which is gone now.
    BlockWriteThreshold {
        /// The node.
        node_name: String,
        /// By how many bytes.
        amount_exceeded: u64,
        /// The threshold, an offset in bytes.
        write_threshold: u64,
    },
    /// An export is gone.
    BlockExportDeleted {
        /// The export.
        id: String,
    },
    /// A device is gone.
    DeviceDeleted {
        /// Its id, if it had one.
        device: Option<String>,
        /// Where it was in the tree of objects.
        path: String,
    },
    /// A tray was opened or closed.
    DeviceTrayMoved {
        /// The drive; empty if there is none.
        device: String,
        /// The device.
        id: String,
        /// Whether it is open now.
        tray_open: bool,
    },
    /// Everything ends.
    Shutdown {
        /// Whether the guest wanted it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The machine is stopped.
    Stop,
    /// The machine goes on.
    Resume,
}

impl Event {
    /// The event's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::JobStatusChange { .. } => "JOB_STATUS_CHANGE",
            Self::BlockJobCompleted { .. } => "BLOCK_JOB_COMPLETED",
            Self::BlockJobCancelled { .. } => "BLOCK_JOB_CANCELLED",
            Self::BlockJobError { .. } => "BLOCK_JOB_ERROR",
            Self::BlockJobPending { .. } => "BLOCK_JOB_PENDING",
            Self::BlockImageCorrupted { .. } => "BLOCK_IMAGE_CORRUPTED",
            Self::BlockWriteThreshold { .. } => "BLOCK_WRITE_THRESHOLD",
            Self::BlockExportDeleted { .. } => "BLOCK_EXPORT_DELETED",
            Self::DeviceDeleted { .. } => "DEVICE_DELETED",
            Self::DeviceTrayMoved { .. } => "DEVICE_TRAY_MOVED",
            Self::Shutdown { .. } => "SHUTDOWN",
            Self::Stop => "STOP",
            Self::Resume => "RESUME",
        }
    }

    /// The event's data, where it has any: an object.
    #[must_use]
    pub fn data(&self) -> Option<Value> {
        let mut data = match self {
            Self::JobStatusChange { id, status } => json!({"id": id, "status": status}),
            Self::BlockJobCompleted {
                kind,
                device,
                len,
                offset,
                speed,
                error,
            } => json!({"type": kind, "device": device, "len": len, "offset": offset,
                "speed": speed, "error": error}),
            Self::BlockJobCancelled {
                kind,
                device,
                len,
                offset,
                speed,
            } => json!({"type": kind, "device": device, "len": len, "offset": offset,
                "speed": speed}),
            Self::BlockJobError {
                device,
                operation,
                action,
            } => json!({"device": device, "operation": operation, "action": action}),
            Self::BlockJobPending { kind, id } => json!({"type": kind, "id": id}),
            Self::BlockImageCorrupted {
                device,
                node_name,
                msg,
                offset,
                size,
                fatal,
            } => json!({"device": device, "node-name": node_name, "msg": msg, "offset": offset,
                "size": size, "fatal": fatal}),
            Self::BlockWriteThreshold {
                node_name,
                amount_exceeded,
                write_threshold,
            } => json!({"node-name": node_name, "amount-exceeded": amount_exceeded,
                "write-threshold": write_threshold}),
            Self::BlockExportDeleted { id } => json!({"id": id}),
            Self::DeviceDeleted { device, path } => json!({"device": device, "path": path}),
            Self::DeviceTrayMoved {
                device,
                id,
                tray_open,
            } => json!({"device": device, "id": id, "tray-open": tray_open}),
            Self::Shutdown { guest, reason } => json!({"guest": guest, "reason": reason}),
            Self::Stop | Self::Resume => return None,
        };
        // What is not known is left out. No event has a null in it.
        if let Value::Object(members) = &mut data {
            members.retain(|_, value| !value.is_null());
        }
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(error: Option<&str>) -> Event {
        Event::BlockJobCompleted {
            kind: JobType::Backup,
            device: "j".to_owned(),
            len: 2,
            offset: 1,
            speed: 0,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn data_has_the_names_of_qemu() {
        for (event, name, data) in [
            (
                Event::JobStatusChange {
                    id: "j".to_owned(),
                    status: JobStatus::Concluded,
                },
                "JOB_STATUS_CHANGE",
                json!({"id": "j", "status": "concluded"}),
            ),
            (
                completed(None),
                "BLOCK_JOB_COMPLETED",
                json!({"type": "backup", "device": "j", "len": 2, "offset": 1, "speed": 0}),
            ),
            (
                completed(Some("Input/output error")),
                "BLOCK_JOB_COMPLETED",
                json!({"type": "backup", "device": "j", "len": 2, "offset": 1, "speed": 0,
                    "error": "Input/output error"}),
            ),
            (
                Event::DeviceDeleted {
                    device: None,
                    path: "/machine/peripheral/x".to_owned(),
                },
                "DEVICE_DELETED",
                json!({"path": "/machine/peripheral/x"}),
            ),
        ] {
            assert_eq!(event.name(), name);
            assert_eq!(event.data(), Some(data), "{name}");
        }
        assert_eq!(Event::Stop.name(), "STOP");
        assert_eq!(Event::Stop.data(), None);
    }
}
