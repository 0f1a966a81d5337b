//! What a backup has come to, for people, programs and the shell.

use serde_json::{Value, json};

use super::args::Args;
use crate::report::human;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    /// The target differs from the source.
    Differs,
    /// An increment was asked for.
    FullInstead,
    Failed,
    /// By a signal.
    Interrupted(u8),
}

impl Ending {
    /// The exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Differs => crate::EXIT_DIFFERENT,
            Self::FullInstead => 4,
            Self::Interrupted(signal) => 128 + signal,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Differs => "differs",
            Self::FullInstead => "full-instead",
            Self::Interrupted(_) => "interrupted",
        }
    }
}

/// The figures of a backup.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    /// What there is to say on standard error, a paragraph each.
    pub(crate) messages: Vec<String>,
    pub(crate) is_incremental: bool,
    pub(crate) is_resumed: bool,
    /// Bytes copied by this run: as data, and as zeroes.
    pub(crate) data_bytes: u64,
    pub(crate) zero_bytes: u64,
    /// What an earlier run had copied, and was right.
    pub(crate) kept_bytes: u64,
    /// Copying and comparing.
    pub(crate) seconds: f64,
    /// None: nobody looked.
    pub(crate) verified: Option<bool>,
    pub(crate) differing_bytes: u64,
}

impl Outcome {
    fn bytes(&self) -> u64 {
        self.data_bytes + self.zero_bytes
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn bytes_per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.bytes() as f64 / self.seconds
        } else {
            0.0
        }
    }

    /// One object.
    pub(crate) fn json(&self, args: &Args) -> Value {
        json!({
            "status": self.ending.name(),
            "exit_status": self.ending.status(),
            "source": args.source,
            "target": args.target,
            "format": args.target_format().name(),
            "incremental": self.is_incremental,
            "bytes": self.bytes(),
            "data_bytes": self.data_bytes,
            "zero_bytes": self.zero_bytes,
            "kept_bytes": self.kept_bytes,
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_per_second(),
            "resumed": self.is_resumed,
            "verified": self.verified,
            "differing_bytes": self.differing_bytes,
            "messages": self.messages,
        })
    }

    /// One line.
    pub(crate) fn line(&self, args: &Args) -> String {
        let kind = if self.is_incremental {
            "increment"
        } else {
            "full"
        };
        let mut text = format!(
            "{kind} backup in '{}' ({}): {} in {:.1} s",
            args.target,
            args.target_format().name(),
            human::bytes(self.bytes()),
            self.seconds
        );
        if self.bytes() > 0 {
            let rate = human::rate(self.bytes_per_second());
            text += &format!(", {rate}, {} of it zeroes", human::bytes(self.zero_bytes));
        }
        if self.is_resumed {
            text += &format!("; {} kept from before", human::bytes(self.kept_bytes));
        }
        if self.verified == Some(true) {
            text += "; verified";
        }
        text
    }
}
