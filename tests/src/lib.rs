//! What the tests of the whole share: the program under test, other programs
//! under a time limit, disks to test on, and what to do where one of these is
//! missing.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `binary` | where `ringback` is |
//! | `process` | programs with a time limit, and waiting for events |
//! | `needs` | skip on a user's machine, fail in CI |
//! | `scratch` | directories that go away, also on panic |
//! | `device` | loop devices and mounts that go away, also on panic |
//! | `hostile` | what must hold for any bytes at all |
//! | `image` | raw images: making, changing, comparing |
//! | `qmp` | daemons and their monitors |
//! | `certificates` | authorities and certificates of one test |
//! | `random` | choices from a seed |
//! | `report` | the report of `ringback bench --json` |

pub mod binary;
pub mod certificates;
pub mod device;
pub mod hostile;
pub mod image;
pub mod needs;
pub mod process;
pub mod qmp;
pub mod random;
pub mod report;
pub mod scratch;
