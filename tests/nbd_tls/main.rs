//! The NBD server of `ringback daemon` under TLS: what `qemu-img` and libnbd's
//! programs make of it, and what somebody between them could try; and its nodes and
//! the other programs as clients of such servers.

mod clients;
mod nodes;
mod objects;
mod place;
mod programs;
mod wire;
