//! Why an export could not be opened. The texts are QEMU's.

use ringback_net::{ReadError, TlsError};
use ringback_ring::Errno;

use super::wire::{self, option_reply as reply};

/// Why an export could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NbdError {
    /// The simulated machine has no network.
    #[error("The simulated machine has no network")]
    NoNetwork,
    /// The name does not fit in an option.
    #[error("export name too long to send to server")]
    NameTooLong,
    /// The query does not fit in an option.
    #[error("x-dirty-bitmap query too long to send to server")]
    QueryTooLong,
    /// Nobody is there.
    #[error("Failed to connect to '{address}': {reason}")]
    Connect {
        /// Where.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The host's name is not known.
    #[error("address resolution failed for {address}: {reason}")]
    Resolve {
        /// Which name, with the port.
        address: String,
        /// What the resolver says.
        reason: String,
    },
    /// It took too long.
    #[error("Connection attempt cancelled by timeout")]
    Timeout,
    /// The stream ended or broke.
    #[error("Failed to {what}: {reason}")]
    Stream {
        /// Reading or sending what.
        what: &'static str,
        /// How.
        reason: String,
    },
    /// The first bytes are not those of a server.
    #[error("Bad initial magic received: {0:#x}")]
    InitialMagic(u64),
    /// The second bytes are not those of a server.
    #[error("Bad server magic received: {0:#x}")]
    ServerMagic(u64),
    /// A reply to an option does not begin as it should.
    #[error("Unexpected option reply magic")]
    ReplyMagic,
    /// A reply to something that was not asked.
    #[error(
        "Unexpected option type {got} ({}), expected {wanted} ({})",
        wire::option_name(*.got),
        wire::option_name(*.wanted)
    )]
    OtherOption {
        /// What was answered.
        got: u32,
        /// What was asked.
        wanted: u32,
    },
    /// A reply of another kind.
    #[error(
        "unexpected reply type {got} ({}), expected {wanted} ({})",
        wire::option_reply_name(*.got),
        wire::option_reply_name(*.wanted)
    )]
    OtherReply {
        /// What came.
        got: u32,
        /// What should have come.
        wanted: u32,
    },
    /// A reply whose length does not fit its kind.
    #[error("reply to option {option} ({}) has a wrong length", wire::option_name(*.option))]
    ReplyLength {
        /// What was asked.
        option: u32,
    },
    /// The server refuses.
    #[error("{} option {option} ({})", refusal(*.code), wire::option_name(*.option))]
    Refused {
        /// The number of the error.
        code: u32,
        /// What was asked.
        option: u32,
    },
    /// The server refuses, and says why in its own words.
    #[error("{refusal}")]
    Explained {
        /// What it refuses.
        refusal: Box<NbdError>,
        /// Its words, on one line.
        text: String,
    },
    /// TLS is wanted, and the server is too old to be asked for it.
    #[error("Server does not support STARTTLS")]
    NoTls,
    /// TLS is wanted, and the server does not know the word.
    #[error("Server don't support STARTTLS option")]
    TlsUnknown,
    /// The server is not to be trusted, or does not trust us.
    #[error(transparent)]
    Tls(TlsError),
    /// There is no such export.
    #[error("Requested export not available")]
    NoExport,
    /// The same, where the server has named those that there are.
    #[error("No export with name '{0}' available")]
    NotListed(String),
    /// A server of the old style has one export, which has no name.
    #[error("Server does not support non-empty export names")]
    OldStyleName,
    /// An export without a size.
    #[error("broken server omitted NBD_INFO_EXPORT")]
    NoInfo,
    /// Flags that there are not.
    #[error("Unexpected export flags {0:#x}")]
    ExportFlags(u32),
    /// The smallest request is none.
    #[error("server minimum block size {0} is not a power of two")]
    MinimumBlock(u32),
    /// The smallest request would take too much memory.
    #[error("server minimum block size {0} is too large")]
    LargeMinimumBlock(u32),
    /// The best request is none.
    #[error("server preferred block size {0} is not valid")]
    PreferredBlock(u32),
    /// The largest request is smaller than the smallest.
    #[error("server maximum block size {0} is not valid")]
    MaximumBlock(u32),
    /// The last bytes could not be reached.
    #[error("export size {size} is not multiple of minimum block size {unit}")]
    SizeNotWhole {
        /// Of the export, in bytes.
        size: u64,
        /// The smallest request, in bytes.
        unit: u32,
    },
    /// More than a disk can have.
    #[error("export size {0} is too large")]
    TooLarge(u64),
    /// A context that nobody has asked for.
    #[error(
        "Failed to negotiate meta context '{wanted}', server answered with different context \
         '{got}'"
    )]
    OtherContext {
        /// What was asked for.
        wanted: String,
        /// What came.
        got: String,
    },
    /// More contexts than were asked for.
    #[error("Server answered with more than one context")]
    ManyContexts,
    /// The export has no such context.
    #[error("Could not open image: Invalid argument")]
    NoContext,
    /// The export is for reading only.
    #[error("Could not open image: Permission denied")]
    ReadOnly,
    /// What has come back is not what was there before.
    #[error("the export has changed: {0}")]
    Changed(&'static str),
}

/// How a refusal begins.
fn refusal(code: u32) -> &'static str {
    match code {
        reply::ERR_UNSUP => "Unsupported",
        reply::ERR_POLICY => "Denied by server for",
        reply::ERR_INVALID => "Invalid parameters for",
        reply::ERR_PLATFORM => "Server lacks support for",
        reply::ERR_TLS_REQD => "TLS negotiation required before",
        reply::ERR_SHUTDOWN => "Server shutting down before",
        reply::ERR_BLOCK_SIZE_REQD => "Server requires INFO_BLOCK_SIZE for",
        _ => "Unknown error code when asking for",
    }
}

impl NbdError {
    /// What helps a person beyond the text of the error, in lines. It is no part of
    /// what programs are told.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Explained { refusal, text } => {
                let said = format!("server reported: {text}");
                Some(match refusal.hint() {
                    Some(hint) => format!("{hint}\n{said}"),
                    None => said,
                })
            }
            Self::Refused {
                code: reply::ERR_TLS_REQD,
                ..
            } => Some("Did you forget a valid tls-creds?".to_owned()),
            _ => None,
        }
    }

    /// The same with the server's words, if it had any.
    pub(super) fn explained(self, text: Option<String>) -> Self {
        match text {
            None => self,
            Some(text) => Self::Explained {
                refusal: Box::new(self),
                text,
            },
        }
    }

    /// Nothing more came.
    pub(super) fn read(what: &'static str, error: ReadError) -> Self {
        let reason = match error {
            ReadError::End | ReadError::Truncated => {
                "Unexpected end-of-file before all data were read".to_owned()
            }
            ReadError::Io(errno) => {
                format!(
                    "Unable to read from socket: {}",
                    ringback_ring::error_text(errno)
                )
            }
        };
        Self::Stream { what, reason }
    }

    /// The same under TLS. A server that does not believe our certificate says so
    /// only here, when the handshake is over on our side.
    pub(super) fn read_under_tls(what: &'static str, error: ReadError) -> Self {
        let reason = match error {
            ReadError::End | ReadError::Truncated | ReadError::Io(Errno::EPROTO) => {
                "The TLS connection was non-properly terminated.".to_owned()
            }
            ReadError::Io(errno) => ringback_ring::error_text(errno),
        };
        Self::Stream {
            what,
            reason: format!("Cannot read from TLS channel: {reason}"),
        }
    }

    /// Nothing more could be sent.
    pub(super) fn sent(what: &'static str, errno: Errno, is_tls: bool) -> Self {
        let text = ringback_ring::error_text(errno);
        let channel = if is_tls {
            "Cannot write to TLS channel"
        } else {
            "Unable to write to socket"
        };
        Self::Stream {
            what,
            reason: format!("{channel}: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::nbd::wire::option;

    #[test]
    fn texts_are_those_that_people_look_for() {
        let refused = |code| NbdError::Refused {
            code,
            option: option::GO,
        };
        assert_eq!(
            refused(reply::ERR_POLICY).to_string(),
            "Denied by server for option 7 (go)"
        );
        assert_eq!(
            refused(reply::ERROR + 77).to_string(),
            "Unknown error code when asking for option 7 (go)"
        );
        let no_tls = refused(reply::ERR_TLS_REQD).explained(Some("not before TLS".into()));
        assert_eq!(
            no_tls.to_string(),
            "TLS negotiation required before option 7 (go)"
        );
        assert_eq!(
            no_tls.hint().as_deref(),
            Some("Did you forget a valid tls-creds?\nserver reported: not before TLS")
        );
        assert_eq!(refused(reply::ERR_POLICY).explained(None).hint(), None);
        let other = NbdError::OtherOption {
            got: option::LIST,
            wanted: option::GO,
        };
        assert_eq!(
            other.to_string(),
            "Unexpected option type 3 (list), expected 7 (go)"
        );
        assert_eq!(
            NbdError::InitialMagic(0x41).to_string(),
            "Bad initial magic received: 0x41"
        );
    }
}
