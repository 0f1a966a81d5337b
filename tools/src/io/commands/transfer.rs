//! `read`, `readv`, `write`, `writev`, `discard`, `flush`: the shell waits for
//! them.

use std::rc::Rc;

use super::memory::{
    Common, FILL, Memory, TRANSFER_MAX, UNREAD, check_sectors, exactly, offset_and_lengths,
    pattern, vector,
};
use super::{Call, Command, Failure, Needs, Outcome, PLAIN, size};
use crate::io::disk::ZeroFlags;
use crate::io::report::{Transfer, dump};
use crate::io::shell::Shell;

pub(super) const READ: Command = Command {
    name: "read",
    alias: Some("r"),
    arguments: Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"),
    one_line: "reads a number of bytes at a specified offset",
    help: "
 Reads a range of the open image and shows how long that took.

 Example:
 'read -v 512 1k' - reads 1 KiB from offset 512 and shows the bytes

 -b, -- read the state of a machine, not its disk
 -C, -- report in one line for programs
 -l, -- with -P: how many bytes to check
 -p, -- ignored
 -P, -- check that all bytes are this one
 -q, -- no report
 -r, -- use a registered buffer (buffers always are)
 -s, -- with -P: where to begin to check, counted from off
 -v, -- show the bytes
",
    min: 2,
    max: None,
    run: |shell, call| Box::pin(read(shell, call)),
    ..PLAIN
};

pub(super) const READV: Command = Command {
    name: "readv",
    arguments: Some("[-Cqrv] [-P pattern] off len [len..]"),
    one_line: "reads a number of bytes at a specified offset",
    help: "
 Reads a range of the open image into several buffers, one for each len.

 Example:
 'readv -v 512 1k 1k' - reads 2 KiB from offset 512 and shows the bytes

 -C, -- report in one line for programs
 -P, -- check that all bytes are this one
 -q, -- no report
 -r, -- use registered buffers (buffers always are)
 -v, -- show the bytes
",
    min: 2,
    max: None,
    run: |shell, call| Box::pin(readv(shell, call)),
    ..PLAIN
};

pub(super) const WRITE: Command = Command {
    name: "write",
    alias: Some("w"),
    arguments: Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"),
    one_line: "writes a number of bytes at a specified offset",
    help: "
 Writes a range of the open image, with the byte 0xcd unless told otherwise,
 and shows how long that took.

 Example:
 'write 512 1k' - writes 1 KiB at offset 512

 -b, -- write the state of a machine, not its disk
 -c, -- write compressed clusters
 -C, -- report in one line for programs
 -f, -- durable when it ends (FUA)
 -n, -- with -z: fail rather than write zeroes as data
 -p, -- ignored
 -P, -- write this byte
 -q, -- no report
 -r, -- use a registered buffer (buffers always are)
 -s, -- write what is in this file, repeated
 -u, -- with -z: the space may be given back
 -z, -- write zeroes
",
    min: 2,
    max: None,
    needs: Needs::Writing,
    run: |shell, call| Box::pin(write(shell, call)),
    ..PLAIN
};

pub(super) const WRITEV: Command = Command {
    name: "writev",
    arguments: Some("[-Cfqr] [-P pattern] off len [len..]"),
    one_line: "writes a number of bytes at a specified offset",
    help: "
 Writes a range of the open image from several buffers, one for each len.

 Example:
 'writev 512 1k 1k' - writes 2 KiB at offset 512

 -C, -- report in one line for programs
 -f, -- durable when it ends (FUA)
 -P, -- write this byte
 -q, -- no report
 -r, -- use registered buffers (buffers always are)
",
    min: 2,
    max: None,
    needs: Needs::Writing,
    run: |shell, call| Box::pin(writev(shell, call)),
    ..PLAIN
};

pub(super) const DISCARD: Command = Command {
    name: "discard",
    alias: Some("d"),
    arguments: Some("[-Cq] off len"),
    one_line: "discards a number of bytes at a specified offset",
    help: "
 Tells the open image that a range is no longer needed.

 Example:
 'discard 512 1k' - gives up 1 KiB from offset 512

 -C, -- report in one line for programs
 -q, -- no report
",
    min: 2,
    max: None,
    needs: Needs::Writing,
    run: |shell, call| Box::pin(discard(shell, call)),
    ..PLAIN
};

pub(super) const FLUSH: Command = Command {
    name: "flush",
    alias: Some("f"),
    one_line: "flush all in-core file state to disk",
    run: |shell, _| Box::pin(flush(shell)),
    ..PLAIN
};

/// A report, on standard output.
fn report(
    shell: &Shell,
    common: Common,
    verb: &'static str,
    (offset, bytes): (u64, u64),
    start_ns: u64,
) {
    let transfer = Transfer {
        verb,
        offset,
        bytes,
        duration_ns: shell.shard.now_ns() - start_ns,
    };
    shell.out.print(&transfer.report(common.style));
}

/// What `read` is asked to check.
#[derive(Default)]
struct Expectation {
    byte: Option<u8>,
    start: Option<u64>,
    len: Option<u64>,
}

async fn read(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let (mut common, mut expected) = (Common::default(), Expectation::default());
    let (mut vmstate, mut show, mut registered) = (false, false, false);
    let mut getopt = call.getopt("bCl:pP:qrs:v");
    while let Some(given) = getopt.next()? {
        match given.letter {
            'b' => vmstate = true,
            'l' => expected.len = Some(size(&given.value())?),
            'P' => expected.byte = Some(pattern(&given.value())?),
            's' => expected.start = Some(size(&given.value())?),
            'v' => show = true,
            letter if common.take(letter) => registered |= letter == 'r',
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let [offset, count] = exactly(getopt.others())?;
    let (offset, len) = (size(&offset)?, size(&count)?);
    if len > TRANSFER_MAX {
        return Err(Failure::Said(format!(
            "length cannot exceed {TRANSFER_MAX}, given {count}"
        )));
    }
    if expected.byte.is_none() && (expected.start.is_some() || expected.len.is_some()) {
        return Err(Failure::Usage);
    }
    let start = expected.start.unwrap_or(0);
    let checked = expected.len.unwrap_or(len.saturating_sub(start));
    if start.checked_add(checked).is_none_or(|end| end > len) {
        let text = "pattern verification range exceeds end of read data";
        return Err(Failure::Said(text.into()));
    }
    if vmstate {
        check_sectors(offset, len)?;
        if registered {
            let text = "I/O buffer registration is not supported when reading from vmstate";
            return Err(Failure::Said(text.into()));
        }
    }
    let disk = shell.disk();
    let start_ns = shell.shard.now_ns();
    if !vmstate {
        disk.check(offset, len)
            .map_err(|errno| Failure::failed("read", errno))?;
    }
    let memory = Memory::filled(shell, len, UNREAD).await;
    let Memory { buf, window } = memory.map_err(|errno| Failure::failed("read", errno))?;
    let (result, buf) = if vmstate {
        disk.load_vmstate(offset, buf, window.clone()).await
    } else {
        disk.read(offset, buf, window.clone()).await
    };
    result.map_err(|errno| Failure::failed("read", errno))?;
    let memory = Memory { buf, window };
    let range = in_memory(start)..in_memory(start + checked);
    let is_well = expected
        .byte
        .is_none_or(|byte| verify(shell, &memory.bytes()[range], byte, offset + start));
    if !common.style.quiet {
        if show {
            shell.out.print(&dump(offset, memory.bytes()));
        }
        report(shell, common, "read", (offset, len), start_ns);
    }
    if is_well {
        Ok(())
    } else {
        Err(Failure::Silent)
    }
}

fn in_memory(len: u64) -> usize {
    usize::try_from(len).expect("a length below TRANSFER_MAX")
}

/// Whether all bytes are the same one; if not, says so.
pub(super) fn verify(shell: &Shell, bytes: &[u8], byte: u8, offset: u64) -> bool {
    let is_well = bytes.iter().all(|&other| other == byte);
    if !is_well {
        shell.out.line(&format!(
            "Pattern verification failed at offset {offset}, {} bytes",
            bytes.len()
        ));
    }
    is_well
}

async fn readv(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut common = Common::default();
    let (mut byte, mut show) = (None, false);
    let mut getopt = call.getopt("CP:qrv");
    while let Some(given) = getopt.next()? {
        match given.letter {
            'P' => byte = Some(pattern(&given.value())?),
            'v' => show = true,
            letter if common.take(letter) => {}
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let words = getopt.others();
    let (offset, lengths) = offset_and_lengths(&words)?;
    let (offset, len) = vector(offset, lengths)?;
    let disk = shell.disk();
    let start_ns = shell.shard.now_ns();
    let failed = |errno| Failure::failed("readv", errno);
    disk.check(offset, len).map_err(failed)?;
    let memory = Memory::filled(shell, len, UNREAD).await;
    let Memory { buf, window } = memory.map_err(failed)?;
    let (result, buf) = disk.read(offset, buf, window.clone()).await;
    result.map_err(failed)?;
    let bytes = &buf[window];
    let is_well = byte.is_none_or(|byte| verify(shell, bytes, byte, offset));
    if !common.style.quiet {
        if show {
            shell.out.print(&dump(offset, bytes));
        }
        report(shell, common, "read", (offset, len), start_ns);
    }
    if is_well {
        Ok(())
    } else {
        Err(Failure::Silent)
    }
}

/// What `write` is asked for.
#[derive(Default)]
struct Writing {
    common: Common,
    vmstate: bool,
    compressed: bool,
    registered: bool,
    zeroes: bool,
    flags: ZeroFlags,
    byte: Option<u8>,
    file: Option<String>,
}

impl Writing {
    fn parse(call: &Call) -> Result<(Self, Vec<String>), Failure> {
        let mut this = Self::default();
        let mut getopt = call.getopt("bcCfnpP:qrs:uz");
        while let Some(given) = getopt.next()? {
            match given.letter {
                'b' => this.vmstate = true,
                'c' => this.compressed = true,
                'f' => this.flags.fua = true,
                'n' => this.flags.no_fallback = true,
                'P' => this.byte = Some(pattern(&given.value())?),
                's' => this.file = Some(given.value()),
                'u' => this.flags.may_unmap = true,
                'z' => this.zeroes = true,
                letter if this.common.take(letter) => this.registered |= letter == 'r',
                letter => return Err(super::memory::unexpected(call, letter)),
            }
        }
        Ok((this, getopt.others()))
    }

    /// Which options go together, in QEMU's order.
    fn check(&self) -> Result<(), Failure> {
        let sources = [self.zeroes, self.byte.is_some(), self.file.is_some()];
        let text = if self.vmstate && self.zeroes {
            "-b and -z cannot be specified at the same time"
        } else if self.flags.fua && (self.vmstate || self.compressed) {
            "-f and -b or -c cannot be specified at the same time"
        } else if self.flags.no_fallback && !self.zeroes {
            "-n requires -z to be specified"
        } else if self.flags.may_unmap && !self.zeroes {
            "-u requires -z to be specified"
        } else if sources.iter().filter(|&&given| given).count() > 1 {
            "Only one of -z, -P, and -s can be specified at the same time"
        } else {
            return Ok(());
        };
        Err(Failure::Said(text.into()))
    }

    fn check_range(&self, offset: u64, len: u64, count: &str) -> Result<(), Failure> {
        if len > TRANSFER_MAX && !self.flags.no_fallback {
            return Err(Failure::Said(format!(
                "length cannot exceed {TRANSFER_MAX} without -n, given {count}"
            )));
        }
        if self.vmstate || self.compressed {
            check_sectors(offset, len)?;
        }
        if self.zeroes && self.registered {
            return Err(Failure::Said(REGISTERED_ZEROES.into()));
        }
        Ok(())
    }
}

pub(super) const REGISTERED_ZEROES: &str = "cannot combine zero write with registered I/O buffer";

async fn write(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let (asked, words) = Writing::parse(call)?;
    let [offset, count] = exactly(words)?;
    asked.check()?;
    let (offset, len) = (size(&offset)?, size(&count)?);
    asked.check_range(offset, len, &count)?;
    let failed = |errno| Failure::failed("write", errno);
    let disk = shell.disk();
    if asked.zeroes {
        let start_ns = shell.shard.now_ns();
        disk.write_zeroes(offset, len, asked.flags)
            .await
            .map_err(failed)?;
        report(shell, asked.common, "wrote", (offset, len), start_ns);
        return Ok(());
    }
    if !asked.vmstate && asked.file.is_none() {
        disk.check(offset, len).map_err(failed)?;
    }
    let byte = asked.byte.unwrap_or(FILL);
    let memory = Memory::filled(shell, len, byte).await;
    let mut memory = memory.map_err(failed)?;
    if let Some(file) = &asked.file {
        memory.fill_from(file).map_err(Failure::Told)?;
    }
    let Memory { buf, window } = memory;
    let start_ns = shell.shard.now_ns();
    let (result, _) = if asked.vmstate {
        disk.save_vmstate(offset, buf, window).await
    } else if asked.compressed {
        disk.write_compressed(offset, buf, window).await
    } else {
        disk.write(offset, buf, window, asked.flags.fua).await
    };
    result.map_err(failed)?;
    report(shell, asked.common, "wrote", (offset, len), start_ns);
    Ok(())
}

async fn writev(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut common = Common::default();
    let (mut byte, mut fua) = (FILL, false);
    let mut getopt = call.getopt("CfP:qr");
    while let Some(given) = getopt.next()? {
        match given.letter {
            'f' => fua = true,
            'P' => byte = pattern(&given.value())?,
            letter if common.take(letter) => {}
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let words = getopt.others();
    let (offset, lengths) = offset_and_lengths(&words)?;
    let (offset, len) = vector(offset, lengths)?;
    let disk = shell.disk();
    let failed = |errno| Failure::failed("writev", errno);
    disk.check(offset, len).map_err(failed)?;
    let memory = Memory::filled(shell, len, byte).await;
    let Memory { buf, window } = memory.map_err(failed)?;
    let start_ns = shell.shard.now_ns();
    let (result, _) = disk.write(offset, buf, window, fua).await;
    result.map_err(failed)?;
    report(shell, common, "wrote", (offset, len), start_ns);
    Ok(())
}

async fn discard(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut common = Common::default();
    let mut getopt = call.getopt("Cq");
    while let Some(given) = getopt.next()? {
        if !common.take(given.letter) {
            return Err(super::memory::unexpected(call, given.letter));
        }
    }
    let [offset, count] = exactly(getopt.others())?;
    let (offset, len) = (size(&offset)?, size(&count)?);
    if len > TRANSFER_MAX {
        return Err(Failure::Said(format!(
            "length cannot exceed {TRANSFER_MAX}, given {count}"
        )));
    }
    let start_ns = shell.shard.now_ns();
    let result = shell.disk().discard(offset, len).await;
    result.map_err(|errno| Failure::failed("discard", errno))?;
    report(shell, common, "discard", (offset, len), start_ns);
    Ok(())
}

/// A failure is known by the exit status alone.
async fn flush(shell: &Rc<Shell>) -> Outcome {
    shell.disk().flush().await.map_err(|_| Failure::Silent)
}
