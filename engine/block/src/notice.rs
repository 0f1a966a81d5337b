//! What a node has to say that is no answer to a request.

use std::sync::Arc;

use crate::span::Span;

/// Something that whoever runs the program should learn of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An image contradicts itself.
    ImageCorrupt {
        /// The node.
        node: String,
        /// What was found, in QEMU's words.
        message: String,
        /// The image cannot be used any more until it is repaired.
        fatal: bool,
        /// The bytes that a write would have hit, if that was it.
        span: Option<Span>,
    },
    /// A write goes beyond a threshold, which is gone by now.
    WriteThreshold {
        /// The node.
        node: String,
        /// The threshold, an offset in bytes.
        threshold: u64,
        /// By how many bytes.
        exceeded: u64,
    },
    /// Something that may be wrong.
    Warning(String),
    /// Something failed, and no request was there to be told.
    Error(String),
    /// A line for the log or the terminal, as it is.
    Message(String),
}

/// Takes notices, on any shard. It must not wait.
#[derive(Clone)]
pub struct Notify(Arc<dyn Fn(Notice) + Send + Sync>);

impl Notify {
    /// Calls a function for each notice.
    pub fn new(take: impl Fn(Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Hands a notice over.
    pub fn send(&self, notice: Notice) {
        (self.0)(notice);
    }
}

/// Into the log.
impl Default for Notify {
    fn default() -> Self {
        Self::new(|notice| match notice {
            Notice::ImageCorrupt { node, message, .. } => {
                tracing::error!(node, "the image is corrupt: {message}");
            }
            Notice::WriteThreshold {
                node, threshold, ..
            } => tracing::info!(node, threshold, "a write goes beyond the threshold"),
            Notice::Error(text) => tracing::error!("{text}"),
            Notice::Warning(text) | Notice::Message(text) => tracing::warn!("{text}"),
        })
    }
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notify")
    }
}
