//! `ringback daemon` as programs see it that manage disks: its command line, its
//! monitor, its jobs; beside `qemu-storage-daemon`, with the same words.

mod backup;
mod beside;
mod bitmaps;
mod cbw;
mod differential;
mod jobs;
mod latency;
mod latency_classes;
mod nodes;
mod qemu_qmp;
mod qmp;
mod queries;
mod reopen;
mod scrape;
mod start;
mod transcript;
