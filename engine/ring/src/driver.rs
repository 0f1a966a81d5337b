//! The two rings behind one enum: one branch a submission, and nothing above
//! this file knows which of them runs.

use std::ptr::NonNull;

use crate::op::{Load, Operation, Ops, Verb};
use crate::sim::SimPort;
use crate::uring::{Target, Uring};

pub(crate) enum Driver {
    Uring(Box<Uring>),
    Sim(SimPort),
}

impl Driver {
    /// Takes an operation whose buffer, if any, is in the slab under `key`.
    pub(crate) fn submit(&mut self, key: u32, operation: &Operation, ops: &Ops) {
        match self {
            Self::Uring(uring) => {
                let target = ops.with_load(key, Target::of);
                uring.push_operation(key, operation, &target);
            }
            Self::Sim(port) => {
                let data = ops.with_load(key, |load| match load {
                    Load::Window(buf, window) if operation.verb == Verb::Write => {
                        Some(buf[window.clone()].to_vec())
                    }
                    _ => None,
                });
                port.submit(key, operation, data);
            }
        }
    }

    /// Ends a wait for readiness early.
    pub(crate) fn cancel_wait(&mut self, key: u32) {
        match self {
            Self::Uring(uring) => uring.cancel_wait(key),
            Self::Sim(_) => unreachable!("the simulation has no sockets"),
        }
    }

    /// Delivers what has completed; the shards whose wake-up did not arrive.
    pub(crate) fn reap(&mut self, ops: &Ops) -> Vec<u16> {
        match self {
            Self::Uring(uring) => {
                uring.reap(|key, result| ops.complete(key, result, |_| {}));
                uring.take_missed()
            }
            Self::Sim(port) => {
                port.reap(|key, result, data| {
                    ops.complete(key, result, |window| {
                        window[..data.len()].copy_from_slice(data);
                    });
                });
                Vec::new()
            }
        }
    }

    /// Gives queued submissions to the kernel without waiting.
    pub(crate) fn submit_queued(&mut self) {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Sim(_) => {}
        }
    }

    pub(crate) fn register_buffer(&mut self, start: NonNull<u8>, len: usize) -> Option<u16> {
        match self {
            Self::Uring(uring) => uring.register_buffer(start, len),
            Self::Sim(_) => None,
        }
    }
}
