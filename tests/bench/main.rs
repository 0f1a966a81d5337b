//! `ringback bench` as a user meets it: on files and devices, with every
//! option, with what is wrong, on full and locked disks, and interrupted.

mod backup;
mod daemon;
mod defaults;
mod differential;
mod disks;
mod engine;
mod full_disk;
mod guest;
mod harness;
mod image_opts;
mod locks;
mod output;
mod overwrite;
mod signals;
mod wrong_disks;
mod wrong_options;
