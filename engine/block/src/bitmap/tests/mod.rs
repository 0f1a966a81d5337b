//! Tests of the bitmaps, each against a naive model or a scenario of QEMU's.
//!
//! They are not in the files they test because the model checker compiles those too.

mod dirty;
mod named;
mod threads;
mod words;
