//! The language of control: what a person or a management program writes to say
//! which nodes there are, how commands and answers travel, and the words in which a
//! mistake is answered.
//!
//! The shim stands between that language, which is QEMU's, and the engine's plain
//! types. It opens no file, reads no clock and knows no block graph: text goes in,
//! a checked value or an error comes out. Whatever needs the outside world (is there
//! such a file, is there such a node) is asked later, by the engine.
//!
//! What is here now:
//!
//! - [`keyval`]: `driver=raw,file.driver=file,...`, and the JSON object that may stand
//!   in its place;
//! - [`json`]: JSON as QEMU reads and writes it, with its error texts and its limits;
//! - [`wire`]: one monitor's conversation, bytes to requests and answers to lines;
//! - [`visit`]: reading typed members out of either form;
//! - [`blockdev`]: the options of a node, which is what `--blockdev` and `blockdev-add`
//!   take;
//! - [`command`]: a request of QMP as a value;
//! - [`event`]: what is reported without having been asked for;
//! - [`schema`]: what `query-qmp-schema` tells of both;
//! - [`open`]: the older way to say which image, by file name and flat options;
//! - [`command_line`]: the options of `ringback daemon`, and what each of them takes;
//! - [`throttle_group`]: the object that `throttle` nodes share;
//! - [`opts`]: the older, flat text of `--image-opts` and `-o`;
//! - [`size`] and [`number`]: `64k`, `1.5G`, `0x200`;
//! - [`error`]: everything that can be wrong with options;
//! - [`command_error`]: what a command that failed is answered.
//!
//! # The contract
//!
//! Error texts which scripts can depend on are those of qemu-storage-daemon 10.0, and a
//! differential test holds both against each other. Where an error is our own (a limit,
//! a driver or option that ringback lacks), it says what to do instead.
//!
//! Every text is hostile until read: its size, its depth and the length of a key are
//! bounded, and no parser here recurses deeper than a stated limit.

#![forbid(unsafe_code)]

pub mod blockdev;
pub mod command;
pub mod command_error;
pub mod command_line;
pub mod error;
pub mod event;
pub mod json;
pub mod keyval;
pub mod number;
pub mod open;
pub mod opts;
pub mod schema;
pub mod size;
pub mod throttle_group;
pub mod visit;
pub mod wire;

pub use blockdev::BlockdevOptions;
pub use command_error::{CommandError, ErrorClass};
pub use error::OptionError;
pub use throttle_group::ThrottleGroupOptions;
