//! `iothread`.

use crate::command_line::error::{ArgumentError, Result};
use crate::visit::Reader;

/// Most threads that QEMU would start for an iothread if nobody says.
const DEFAULT_POOL_MAX: i64 = 64;

/// How a thread waits, as given. Numbers are from 0 to 2^63 - 1.
///
/// They tune QEMU's event loop. ringback's shards find their own pace, so all of them are
/// hints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IothreadOptions {
    /// Most requests that are handed over at a time; 0 is left to the engine.
    pub aio_max_batch: Option<i64>,
    /// Fewest threads for blocking work.
    pub thread_pool_min: Option<i64>,
    /// Most threads for blocking work.
    pub thread_pool_max: Option<i64>,
    /// Longest time of looking for work before the thread sleeps, in nanoseconds; 0 is none.
    pub poll_max_ns: Option<i64>,
    /// Factor by which that time grows.
    pub poll_grow: Option<i64>,
    /// Divisor by which it shrinks.
    pub poll_shrink: Option<i64>,
}

impl IothreadOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            aio_max_batch: reader.signed("aio-max-batch")?,
            thread_pool_min: reader.signed("thread-pool-min")?,
            thread_pool_max: reader.signed("thread-pool-max")?,
            poll_max_ns: reader.signed("poll-max-ns")?,
            poll_grow: reader.signed("poll-grow")?,
            poll_shrink: reader.signed("poll-shrink")?,
        })
    }

    /// Whether the numbers go together.
    ///
    /// # Errors
    ///
    /// [`ArgumentError::PropertyRange`] or [`ArgumentError::ThreadPool`].
    pub fn check(self) -> Result<Self> {
        for (name, value) in [
            ("aio-max-batch", self.aio_max_batch),
            ("thread-pool-min", self.thread_pool_min),
            ("thread-pool-max", self.thread_pool_max),
            ("poll-max-ns", self.poll_max_ns),
            ("poll-grow", self.poll_grow),
            ("poll-shrink", self.poll_shrink),
        ] {
            if value.is_some_and(|value| value < 0) {
                return Err(ArgumentError::PropertyRange { name });
            }
        }
        let min = self.thread_pool_min.unwrap_or(0);
        let max = self.thread_pool_max.unwrap_or(DEFAULT_POOL_MAX);
        if min > max || max == 0 || max > i64::from(i32::MAX) {
            return Err(ArgumentError::ThreadPool);
        }
        Ok(self)
    }
}
