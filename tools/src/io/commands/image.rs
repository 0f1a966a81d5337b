//! `open`, `close`, `reopen`.

use std::rc::Rc;

use super::{Call, Command, Failure, Needs, Outcome, PLAIN};
use crate::io::args::Image;
use crate::io::image::{Changes, OpenFlags};
use crate::io::options::{CacheMode, Options, aio_is_native, discard_mode};
use crate::io::shell::Shell;

pub(super) const OPEN: Command = Command {
    name: "open",
    alias: Some("o"),
    arguments: Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"),
    one_line: "open the file specified by path",
    help: "
 Opens an image for the commands that follow. What the program was told about
 its own image does not count here.

 Example:
 'open -n -o driver=raw /tmp/data' - opens a raw image and bypasses the page cache

 -r, -- for reading only
 -s, -- write to an overlay that is thrown away
 -C, -- keep what is read from backing files
 -n, -- bypass the page cache; the same as -t none
 -U, -- take no locks; needs -r
 -k, -- the same as -i native
 -i, -- threads, native or io_uring; io_uring does the work
 -t, -- none, directsync, writeback, writethrough or unsafe
 -d, -- ignore or unmap
 -o, -- options of the image's drivers
",
    min: 1,
    max: None,
    needs: Needs::Nothing,
    in_monitor: false,
    run: |shell, call| Box::pin(open(shell, call)),
};

pub(super) const CLOSE: Command = Command {
    name: "close",
    alias: Some("c"),
    one_line: "close the current open file",
    in_monitor: false,
    run: |shell, _| {
        Box::pin(async {
            shell.program().close(shell).await;
            Ok(())
        })
    },
    ..PLAIN
};

pub(super) const REOPEN: Command = Command {
    name: "reopen",
    arguments: Some("[(-r|-w)] [-c cache] [-o options]"),
    one_line: "reopens an image with new options",
    help: "
 Opens the open image in another way, without letting go of it.

 Example:
 'reopen -o lazy-refcounts=on' - a qcow2 image updates its reference counts later

 -r, -- for reading only
 -w, -- for writing too
 -c, -- another cache mode
 -o, -- options of the image's drivers
",
    max: None,
    run: |shell, call| Box::pin(reopen(shell, call)),
    ..PLAIN
};

async fn open(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let program = shell.program();
    let (mut flags, mut options) = (OpenFlags::default(), Options::default());
    let mut getopt = call.getopt("snCro:ki:t:d:U");
    while let Some(given) = getopt.next()? {
        match given.letter {
            's' => flags.snapshot = true,
            'n' => flags.cache = CacheMode::parse("none").map_err(Failure::Error)?,
            'C' => flags.copy_on_read = true,
            'r' => flags.read_only = true,
            'k' => flags.native_aio = true,
            'i' => flags.native_aio |= aio_is_native(&given.value()).map_err(Failure::Error)?,
            't' => flags.cache = CacheMode::parse(&given.value()).map_err(Failure::Error)?,
            'd' => flags.discard = discard_mode(&given.value()).map_err(Failure::Error)?,
            'U' => flags.force_share = true,
            'o' if program.image_opts => {
                let text = "--image-opts and 'open -o' are mutually exclusive";
                return Err(Failure::Said(text.into()));
            }
            'o' => shell.warn(&options.add(&given.value())),
            letter => return Err(super::memory::unexpected(call, letter)),
        }
    }
    let mut words = getopt.others();
    let word = words.pop();
    if !words.is_empty() {
        return Err(Failure::Usage);
    }
    let name = match word {
        Some(text) if program.image_opts => {
            shell.warn(&options.add(&text));
            None
        }
        word => word,
    };
    let image = Image {
        name,
        options,
        flags,
    };
    program.open(shell, image).await
}

async fn reopen(shell: &Rc<Shell>, call: &Call) -> Outcome {
    if shell.is_monitor() {
        let text = "'reopen' is not supported in a monitor; use blockdev-reopen";
        return Err(Failure::Error(text.into()));
    }
    let program = shell.program();
    let (mut read_only, mut cache) = (None, None);
    let mut getopt = call.getopt("c:o:rw");
    loop {
        let given = match getopt.next() {
            Ok(Some(given)) => given,
            Ok(None) => break,
            Err(unusable) => {
                program.reopen_options.take();
                return Err(unusable.into());
            }
        };
        match given.letter {
            'c' => cache = Some(CacheMode::parse(&given.value()).map_err(Failure::Error)?),
            'o' => {
                let warnings = program.reopen_options.borrow_mut().add(&given.value());
                shell.warn(&warnings);
            }
            letter => {
                if read_only.replace(letter == 'r').is_some() {
                    let text = "Only one -r/-w option may be given";
                    return Err(Failure::Error(text.into()));
                }
            }
        }
    }
    let options = program.reopen_options.take();
    if !getopt.others().is_empty() {
        return Err(Failure::Usage);
    }
    let has = |key| options.get(key).is_some();
    if read_only.is_some() && has("read-only") {
        let text = "Cannot set both -r/-w and 'read-only'";
        return Err(Failure::Error(text.into()));
    }
    if cache.is_some() && (has("cache.direct") || has("cache.no-flush")) {
        let text = "Cannot set both -c and the cache options";
        return Err(Failure::Error(text.into()));
    }
    let changes = Changes {
        read_only,
        cache,
        options,
    };
    program.reopen(shell, &changes).await
}
