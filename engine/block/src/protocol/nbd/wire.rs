//! The numbers and layouts of NBD, as the protocol's document (`doc/proto.md` of
//! the NBD project) has them. All of them are big-endian.

use ringback_ring::Errno;

/// First bytes of a server: "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second bytes of a newstyle server, and first of each option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second bytes of a server of the old style.
pub const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First bytes of a reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First bytes of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First bytes of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// First bytes of a chunk with an extended header.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;

/// Longest name, description and query, in bytes.
pub const STRING_MAX: usize = 4096;
/// Longest payload that is asked for or sent, in bytes.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a request with an extended header.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of a simple reply, without what a read brings.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of a chunk's extended header.
pub const EXTENDED_CHUNK_BYTES: usize = 32;

/// Flags of the greeting, and of the client's answer.
pub mod handshake {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No zeroes follow the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Options.
pub mod option {
    /// Choose an export, without an answer if there is none.
    pub const EXPORT_NAME: u32 = 1;
    /// Go away.
    pub const ABORT: u32 = 2;
    /// Name every export.
    pub const LIST: u32 = 3;
    /// Speak TLS from here on.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Replies may come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name contexts of metadata.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose contexts of metadata.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Lengths have 64 bits.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// What texts call an option.
pub fn option_name(option: u32) -> &'static str {
    match option {
        option::EXPORT_NAME => "export name",
        option::ABORT => "abort",
        option::LIST => "list",
        option::STARTTLS => "starttls",
        option::INFO => "info",
        option::GO => "go",
        option::STRUCTURED_REPLY => "structured reply",
        option::LIST_META_CONTEXT => "list meta context",
        option::SET_META_CONTEXT => "set meta context",
        option::EXTENDED_HEADERS => "extended headers",
        _ => "<unknown>",
    }
}

/// What texts call an answer to an option.
pub fn option_reply_name(reply: u32) -> &'static str {
    match reply {
        option_reply::ACK => "ack",
        option_reply::SERVER => "server",
        option_reply::INFO => "info",
        option_reply::META_CONTEXT => "meta context",
        option_reply::ERR_UNSUP => "unsupported",
        option_reply::ERR_POLICY => "denied by policy",
        option_reply::ERR_INVALID => "invalid",
        option_reply::ERR_PLATFORM => "platform lacks support",
        option_reply::ERR_TLS_REQD => "TLS required",
        option_reply::ERR_UNKNOWN => "export unknown",
        option_reply::ERR_SHUTDOWN => "server shutting down",
        option_reply::ERR_BLOCK_SIZE_REQD => "block size required",
        option_reply::ERR_TOO_BIG => "option payload too big",
        option_reply::ERR_EXT_HEADER_REQD => "extended headers required",
        _ => "<unknown>",
    }
}

/// Answers to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// A context's number and name.
    pub const META_CONTEXT: u32 = 4;
    /// This bit marks errors.
    pub const ERROR: u32 = 1 << 31;
    /// Not known.
    pub const ERR_UNSUP: u32 = ERROR + 1;
    /// Forbidden.
    pub const ERR_POLICY: u32 = ERROR + 2;
    /// Makes no sense.
    pub const ERR_INVALID: u32 = ERROR + 3;
    /// Not here.
    pub const ERR_PLATFORM: u32 = ERROR + 4;
    /// Only over TLS.
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    /// The server goes away.
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    /// Sizes of blocks have to be asked for.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR + 8;
    /// Too much.
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    /// Extended headers have been agreed upon.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Pieces of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The name.
    pub const NAME: u16 = 1;
    /// A line for people.
    pub const DESCRIPTION: u16 = 2;
    /// Sizes of blocks.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of an export.
pub mod export_flags {
    /// There are flags.
    pub const HAS_FLAGS: u16 = 1;
    /// Nobody may write.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// [`super::request_flags::FUA`] is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// [`super::request_flags::DF`] is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same, and one may flush for all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// [`super::request_flags::FAST_ZERO`] is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a list of contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub mod command {
    /// Bytes out.
    pub const READ: u16 = 0;
    /// Bytes in.
    pub const WRITE: u16 = 1;
    /// Go away; has no reply.
    pub const DISC: u16 = 2;
    /// Make what was answered durable.
    pub const FLUSH: u16 = 3;
    /// Forget.
    pub const TRIM: u16 = 4;
    /// Read ahead.
    pub const CACHE: u16 = 5;
    /// Zeroes in.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is there?
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod request_flags {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// Zeroes keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// All in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Not if it would be as slow as writing.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Chunks of replies.
pub mod chunk {
    /// Flag: no more follow.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// An offset and bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and how many zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// A context and extents of 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// A context, a count and extents of 64 bits.
    pub const BLOCK_STATUS_EXTENDED: u16 = 6;
    /// This bit marks errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error and a text.
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// An error, a text and an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
}

/// Flags of extents in `base:allocation`.
pub mod allocation {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// Flags of extents in a context of a bitmap.
pub mod dirty_bitmap {
    /// Dirty.
    pub const DIRTY: u32 = 1;
}

/// The context that tells what takes space and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The context that tells which image of a chain holds a range.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// Contexts of bitmaps begin so.
pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`request_flags`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; below 2^32 without an extended header.
    pub len: u64,
}

/// A field of some bytes that hold it.
pub(super) fn field<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[from..from + N]);
    field
}

impl Request {
    /// Takes a request apart. The error is the magic that it has.
    ///
    /// # Errors
    ///
    /// It does not begin as a request does.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, u32> {
        let request = Self {
            len: u32::from_be_bytes(field(bytes, 24)).into(),
            ..Self::decode_start(bytes)
        };
        check_magic(bytes, REQUEST_MAGIC).map(|()| request)
    }

    /// The same with an extended header.
    ///
    /// # Errors
    ///
    /// See [`Request::decode`].
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Result<Self, u32> {
        let request = Self {
            len: u64::from_be_bytes(field(bytes, 24)),
            ..Self::decode_start(bytes)
        };
        check_magic(bytes, EXTENDED_REQUEST_MAGIC).map(|()| request)
    }

    fn decode_start(bytes: &[u8]) -> Self {
        Self {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: u16::from_be_bytes(field(bytes, 6)),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            len: 0,
        }
    }

    /// Puts a request together. Lengths of 32 bits must be enough for it.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        self.encode_start(REQUEST_MAGIC, &mut bytes);
        let len = u32::try_from(self.len).expect("a length of 32 bits");
        bytes[24..].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// The same with an extended header.
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let mut bytes = [0; EXTENDED_REQUEST_BYTES];
        self.encode_start(EXTENDED_REQUEST_MAGIC, &mut bytes);
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    fn encode_start(&self, magic: u32, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
    }
}

fn check_magic(bytes: &[u8], wanted: u32) -> Result<(), u32> {
    let magic = u32::from_be_bytes(field(bytes, 0));
    if magic == wanted { Ok(()) } else { Err(magic) }
}

/// The number of an error on the wire: what NBD has no number for is EINVAL.
pub fn error_to_wire(errno: Errno) -> u32 {
    match errno {
        Errno::EPERM | Errno::EROFS => 1,
        Errno::EIO => 5,
        Errno::ENOMEM => 12,
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => 28,
        Errno::EOVERFLOW => 75,
        Errno::EOPNOTSUPP => 95,
        Errno::ESHUTDOWN => 108,
        _ => 22,
    }
}

/// The error of a number on the wire: unknown ones are EINVAL.
pub fn error_from_wire(number: u32) -> Errno {
    match number {
        1 => Errno::EPERM,
        5 => Errno::EIO,
        12 => Errno::ENOMEM,
        28 => Errno::ENOSPC,
        75 => Errno::EOVERFLOW,
        95 => Errno::EOPNOTSUPP,
        108 => Errno::ESHUTDOWN,
        _ => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_they_were() {
        let request = Request {
            flags: request_flags::FUA | request_flags::NO_HOLE,
            command: command::WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1122_3344_5566_7788,
            len: 0xffff_ffff,
        };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        let long = Request {
            len: 1 << 40,
            ..request
        };
        assert_eq!(Request::decode_extended(&long.encode_extended()), Ok(long));
        let mut other = request.encode();
        other[0] ^= 0xff;
        assert_eq!(Request::decode(&other), Err(REQUEST_MAGIC ^ 0xff00_0000));
    }

    #[test]
    fn a_request_lies_as_the_document_says() {
        let request = Request {
            flags: 1,
            command: command::WRITE,
            cookie: 2,
            offset: 3,
            len: 4,
        };
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0,
            0, 0, 4,
        ];
        assert_eq!(request.encode(), bytes);
    }

    #[test]
    fn errors_without_a_number_are_invalid() {
        assert_eq!(error_to_wire(Errno::EACCES), 22);
        for errno in [
            Errno::EPERM,
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::ENOSPC,
            Errno::EOVERFLOW,
            Errno::EOPNOTSUPP,
            Errno::ESHUTDOWN,
        ] {
            assert_eq!(error_from_wire(error_to_wire(errno)), errno);
        }
    }
}
