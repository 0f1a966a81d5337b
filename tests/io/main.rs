//! `ringback io` beside `qemu-io`: the same words on the same files must bring
//! the same lines, the same exit status and the same bytes.

mod beside;
mod command_line;
mod help;
mod images;
mod interactive;
mod numbers;
mod random;
mod refusals;
mod transfers;
mod under_its_name;
