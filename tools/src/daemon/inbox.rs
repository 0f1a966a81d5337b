//! What reaches the control task from other threads: bytes of monitors, ends of
//! connections, signals, the bell of a job.

use std::cell::RefCell;
use std::collections::VecDeque;

use ringback_ring::{LocalQueue, Shard, Shards};

use super::chardev::Writer;

/// The shard that the control task runs on.
pub(super) const CONTROL_SHARD: usize = 0;

/// Something that has happened.
pub(super) enum Message {
    /// Somebody has connected to a character device.
    Connected {
        /// Its id.
        chardev: String,
        /// The way back.
        writer: Writer,
    },
    /// Bytes have come.
    Received {
        /// The device's id.
        chardev: String,
        /// As they came, in whatever pieces.
        bytes: Vec<u8>,
        /// Dropped when they have been dealt with, so that the next may come.
        _room: Room,
    },
    /// The other side has gone.
    Disconnected {
        /// The device's id.
        chardev: String,
    },
    /// A job may have something to tell.
    Job,
    /// The file that a job was to make is there, or not.
    Created {
        /// The job.
        job: String,
        /// Or why not.
        result: Result<(), String>,
    },
    /// The last client of an export has gone that was to go.
    ExportIdle {
        /// Which one.
        number: u64,
    },
    /// Something to be told to all monitors.
    Event {
        /// Its name.
        name: &'static str,
        /// What it says.
        data: serde_json::Value,
    },
    /// The process shall end.
    Quit,
}

/// A place among the bytes that may wait at the same time.
pub(super) struct Room(crossbeam::channel::Receiver<()>);

impl Room {
    /// Waits for a place.
    pub(super) fn take(places: &Places) -> Option<Self> {
        places.give.send(()).ok()?;
        Some(Self(places.take.clone()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// The places of one character device.
pub(super) struct Places {
    give: crossbeam::channel::Sender<()>,
    take: crossbeam::channel::Receiver<()>,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let (give, take) = crossbeam::channel::bounded(count);
        Self { give, take }
    }
}

/// The queue of the control task, on its shard.
#[derive(Default)]
pub(super) struct Inbox {
    messages: RefCell<VecDeque<Message>>,
    arrived: LocalQueue,
}

impl Inbox {
    /// The next message, in the order in which they came.
    pub(super) async fn next(&self) -> Message {
        let mut next = None;
        self.arrived
            .wait_until(|| {
                next = self.messages.borrow_mut().pop_front();
                next.is_some()
            })
            .await;
        next.expect("the wait ends with a message")
    }

    fn push(&self, message: Message) {
        self.messages.borrow_mut().push_back(message);
        self.arrived.wake_all();
    }
}

/// Sends to the control task, from any thread.
#[derive(Clone)]
pub(super) struct Address(Shards);

impl Address {
    pub(super) fn new(shards: &Shards) -> Self {
        Self(shards.clone())
    }

    /// Does not wait.
    pub(super) fn send(&self, message: Message) {
        self.0.run_on(CONTROL_SHARD, move |shard: &Shard| {
            shard.local::<Inbox>().push(message);
        });
    }
}
