//! `aio_read`, `aio_write`, `aio_flush`: requests beside the commands. They
//! report when they end, and how they end does not count.

use std::future::Future;
use std::rc::Rc;

use ringback_block::usage::Operation;
use ringback_ring::{IoResult, error_text};

use super::memory::{Common, FILL, Memory, UNREAD, offset_and_lengths, pattern, vector};
use super::transfer::{REGISTERED_ZEROES, verify};
use super::{Call, Command, Failure, Needs, Outcome, PLAIN, size};
use crate::io::disk::{Disk, ZeroFlags};
use crate::io::report::{Transfer, dump};
use crate::io::shell::Shell;

pub(super) const AIO_READ: Command = Command {
    name: "aio_read",
    arguments: Some("[-Ciqrv] [-P pattern] off len [len..]"),
    one_line: "asynchronously reads a number of bytes",
    help: "
 Begins to read a range of the open image into one buffer for each len. The
 report appears when the read has ended, while other commands run; 'aio_flush'
 waits for it. The command succeeds once the read has begun: errors and
 mismatches are only shown.

 Example:
 'aio_read -v 512 1k 1k' - reads 2 KiB from offset 512 and shows the bytes

 -C, -- report in one line for programs
 -i, -- count as an invalid request and do nothing
 -P, -- check that all bytes are this one
 -q, -- no report
 -r, -- use registered buffers (buffers always are)
 -v, -- show the bytes
",
    min: 2,
    max: None,
    run: |shell, call| Box::pin(aio_read(shell, call)),
    ..PLAIN
};

pub(super) const AIO_WRITE: Command = Command {
    name: "aio_write",
    arguments: Some("[-Cfiqruz] [-P pattern] off len [len..]"),
    one_line: "asynchronously writes a number of bytes",
    help: "
 Begins to write a range of the open image from one buffer for each len, with
 the byte 0xcd unless told otherwise. The report appears when the write has
 ended, while other commands run; 'aio_flush' waits for it. The command succeeds
 once the write has begun: errors are only shown.

 Example:
 'aio_write 512 1k 1k' - writes 2 KiB at offset 512

 -C, -- report in one line for programs
 -f, -- durable when it ends (FUA)
 -i, -- count as an invalid request and do nothing
 -P, -- write this byte
 -q, -- no report
 -r, -- use registered buffers (buffers always are)
 -u, -- with -z: the space may be given back
 -z, -- write zeroes
",
    min: 2,
    max: None,
    needs: Needs::Writing,
    run: |shell, call| Box::pin(aio_write(shell, call)),
    ..PLAIN
};

pub(super) const AIO_FLUSH: Command = Command {
    name: "aio_flush",
    one_line: "completes all outstanding aio requests",
    run: |shell, _| {
        Box::pin(async {
            let disk = shell.disk();
            let flush = disk.start_request(Operation::Flush, 0);
            shell.requests.drain_all().await;
            disk.end_request(flush, true);
            Ok(())
        })
    },
    ..PLAIN
};

/// Starts a task, and lets it go as far as it can: a request is on its way
/// before the next command begins.
async fn start(shell: &Rc<Shell>, request: impl Future<Output = ()> + 'static) {
    let in_flight = shell.begin();
    shell.shard.spawn(async move {
        request.await;
        drop(in_flight);
    });
    shell.shard.yield_now().await;
}

/// A request that was begun.
struct Begun {
    shell: Rc<Shell>,
    disk: Rc<Disk>,
    common: Common,
    offset: u64,
    len: u64,
    start_ns: u64,
}

impl Begun {
    fn report(&self, verb: &'static str) {
        let transfer = Transfer {
            verb,
            offset: self.offset,
            bytes: self.len,
            duration_ns: self.shell.shard.now_ns() - self.start_ns,
        };
        self.shell.out.print(&transfer.report(self.common.style));
    }
}

async fn aio_read(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut common = Common::default();
    let (mut byte, mut show) = (None, false);
    let mut getopt = call.getopt("CP:iqrv");
    while let Some(given) = getopt.next()? {
        match given.letter {
            'i' => {
                shell.disk().refuse_request(Operation::Read);
                shell.out.line("injecting invalid read request");
                return Ok(());
            }
            'P' => byte = Some(pattern(&given.value())?),
            'v' => show = true,
            letter if common.take(letter) => {}
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let words = getopt.others();
    let (offset, lengths) = offset_and_lengths(&words)?;
    let (offset, len) = vector(offset, lengths)?;
    let begun = Begun {
        shell: Rc::clone(shell),
        disk: shell.disk(),
        common,
        offset,
        len,
        start_ns: shell.shard.now_ns(),
    };
    start(shell, read_beside(begun, byte, show)).await;
    Ok(())
}

async fn read_beside(begun: Begun, byte: Option<u8>, show: bool) {
    let (shell, offset) = (&begun.shell, begun.offset);
    let memory = match read_memory(&begun).await {
        Ok(memory) => memory,
        Err(errno) => {
            let text = error_text(errno);
            shell.out.line(&format!("readv failed: {text}"));
            return;
        }
    };
    if let Some(byte) = byte {
        verify(shell, memory.bytes(), byte, offset);
    }
    if show && !begun.common.style.quiet {
        shell.out.print(&dump(offset, memory.bytes()));
    }
    begun.report("read");
}

async fn read_memory(begun: &Begun) -> IoResult<Memory> {
    let (disk, offset, len) = (&begun.disk, begun.offset, begun.len);
    let read = disk.start_request(Operation::Read, len);
    let result = async {
        disk.check(offset, len)?;
        let Memory { buf, window } = Memory::filled(&begun.shell, len, UNREAD).await?;
        let (result, buf) = disk.read(offset, buf, window.clone()).await;
        result.map(|()| Memory { buf, window })
    }
    .await;
    disk.end_request(read, result.is_ok());
    result
}

/// What `aio_write` does.
#[derive(Clone, Copy, Debug)]
enum What {
    Zeroes(ZeroFlags),
    Bytes { byte: u8, fua: bool },
}

async fn aio_write(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut common = Common::default();
    let mut flags = ZeroFlags::default();
    let (mut byte, mut zeroes, mut registered) = (FILL, false, false);
    let mut getopt = call.getopt("CfiP:qruz");
    while let Some(given) = getopt.next()? {
        match given.letter {
            'f' => flags.fua = true,
            'i' => {
                shell.disk().refuse_request(Operation::Write);
                shell.out.line("injecting invalid write request");
                return Ok(());
            }
            'P' => byte = pattern(&given.value())?,
            'u' => flags.may_unmap = true,
            'z' => zeroes = true,
            letter if common.take(letter) => registered |= letter == 'r',
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let words = getopt.others();
    let (offset, lengths) = offset_and_lengths(&words)?;
    let refuse = |text: &str| Err(Failure::Said(text.into()));
    if zeroes && lengths.len() != 1 {
        return refuse("-z supports only a single length parameter");
    }
    if flags.may_unmap && !zeroes {
        return refuse("-u requires -z to be specified");
    }
    if zeroes && registered {
        return refuse(REGISTERED_ZEROES);
    }
    let ((offset, len), what) = if zeroes {
        let range = (size(offset)?, size(&lengths[0])?);
        (range, What::Zeroes(flags))
    } else {
        let fua = flags.fua;
        (vector(offset, lengths)?, What::Bytes { byte, fua })
    };
    let begun = Begun {
        shell: Rc::clone(shell),
        disk: shell.disk(),
        common,
        offset,
        len,
        start_ns: shell.shard.now_ns(),
    };
    start(shell, write_beside(begun, what)).await;
    Ok(())
}

async fn write_beside(begun: Begun, what: What) {
    match write_what(&begun, what).await {
        Ok(()) => begun.report("wrote"),
        Err(errno) => {
            let text = error_text(errno);
            let out = &begun.shell.out;
            out.line(&format!("aio_write failed: {text}"));
        }
    }
}

async fn write_what(begun: &Begun, what: What) -> IoResult<()> {
    let (disk, offset, len) = (&begun.disk, begun.offset, begun.len);
    match what {
        // As in QEMU, these do not count.
        What::Zeroes(flags) => {
            disk.check(offset, len)?;
            disk.write_zeroes(offset, len, flags).await
        }
        What::Bytes { byte, fua } => {
            let write = disk.start_request(Operation::Write, len);
            let result = async {
                disk.check(offset, len)?;
                let Memory { buf, window } = Memory::filled(&begun.shell, len, byte).await?;
                disk.write(offset, buf, window, fua).await.0
            }
            .await;
            disk.end_request(write, result.is_ok());
            result
        }
    }
}
