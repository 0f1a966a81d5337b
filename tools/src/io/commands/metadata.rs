//! `length`, `truncate`, `info`, `alloc`, `map`.

use std::rc::Rc;

use ringback_block::request::Preallocation;
use ringback_ring::error_text;

use super::{Call, Command, Failure, Needs, Outcome, PLAIN, bad_size, size};
use crate::io::disk::Disk;
use crate::io::number::{self, SizeError};
use crate::io::report::{self};
use crate::io::shell::Shell;

pub(super) const LENGTH: Command = Command {
    name: "length",
    alias: Some("l"),
    one_line: "gets the length of the current file",
    run: |shell, _| Box::pin(std::future::ready(length(shell))),
    ..PLAIN
};

pub(super) const TRUNCATE: Command = Command {
    name: "truncate",
    alias: Some("t"),
    arguments: Some("[-m prealloc_mode] off"),
    one_line: "truncates the current file at the given offset",
    min: 1,
    max: Some(3),
    needs: Needs::Resizing,
    run: |shell, call| Box::pin(truncate(shell, call)),
    ..PLAIN
};

pub(super) const INFO: Command = Command {
    name: "info",
    alias: Some("i"),
    one_line: "prints information about the current file",
    run: |shell, _| Box::pin(std::future::ready(info(shell))),
    ..PLAIN
};

pub(super) const ALLOC: Command = Command {
    name: "alloc",
    alias: Some("a"),
    arguments: Some("offset [count]"),
    one_line: "checks if offset is allocated in the file",
    min: 1,
    max: Some(2),
    run: |shell, call| Box::pin(alloc(shell, call)),
    ..PLAIN
};

pub(super) const MAP: Command = Command {
    name: "map",
    arguments: Some(""),
    one_line: "prints the allocated areas of a file",
    run: |shell, _| Box::pin(map(shell)),
    ..PLAIN
};

fn disk_size(disk: &Disk) -> Result<u64, Failure> {
    disk.size()
        .map_err(|errno| Failure::Said(format!("getlength: {}", error_text(errno))))
}

fn length(shell: &Rc<Shell>) -> Outcome {
    let bytes = disk_size(&shell.disk())?;
    shell.out.line(&report::size(bytes));
    Ok(())
}

async fn truncate(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let mut mode = Preallocation::Off;
    let mut getopt = call.getopt("m:");
    while let Some(given) = getopt.next()? {
        mode = preallocation(&given.value())?;
    }
    let blamed = first_after_permutation(call);
    let words = getopt.others();
    let parsed = match words.first() {
        Some(word) => number::size(word),
        None => Err(SizeError::Malformed),
    };
    let size = parsed.map_err(|error| bad_size(error, blamed))?;
    let result = shell.truncate(size, mode).await;
    result.map_err(Failure::Error)
}

/// Whatever is wrong with the size, QEMU blames the word that comes first once
/// the options have been moved to the front.
fn first_after_permutation(call: &Call) -> &str {
    let mut words = call.arguments.iter();
    let option = words.find(|word| word.len() > 1 && word.starts_with('-'));
    option.or(call.arguments.first()).map_or("", String::as_str)
}

fn preallocation(name: &str) -> Result<Preallocation, Failure> {
    match name {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        _ => Err(Failure::Error(format!(
            "Invalid preallocation mode '{name}'"
        ))),
    }
}

fn info(shell: &Rc<Shell>) -> Outcome {
    let Some(info) = shell.disk().info() else {
        return Err(Failure::Silent);
    };
    let format = format!("format name: {}", info.format);
    shell.out.line(&format);
    if info.is_protocol {
        shell.out.line(&format);
    }
    let Some((cluster_size, vmstate_offset)) = info.sizes else {
        return Err(Failure::Silent);
    };
    let amounts = [
        ("cluster size", cluster_size),
        ("vm state offset", vmstate_offset),
    ];
    for (what, bytes) in amounts {
        shell.out.line(&format!("{what}: {}", report::size(bytes)));
    }
    if !info.specific.is_empty() {
        shell.out.line("Format specific information:");
        for line in &info.specific {
            shell.out.line(&format!("    {line}"));
        }
    }
    Ok(())
}

async fn alloc(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let start = size(&call.arguments[0])?;
    let count = match call.arguments.get(1) {
        Some(argument) => size(argument)?,
        None => 512,
    };
    let disk = shell.disk();
    let count = count.min(disk_size(&disk)?.saturating_sub(start));
    let (mut offset, end, mut sum) = (start, start + count, 0);
    while offset < end {
        let run = disk.allocated(offset, end - offset).await;
        let (is_allocated, len) = run.map_err(|errno| Failure::failed("is_allocated", errno))?;
        if len == 0 {
            break;
        }
        if is_allocated {
            sum += len;
        }
        offset += len;
    }
    shell.out.line(&format!(
        "{sum}/{count} bytes allocated at offset {}",
        report::size(start)
    ));
    Ok(())
}

async fn map(shell: &Rc<Shell>) -> Outcome {
    let disk = shell.disk();
    let end = disk_size(&disk)?;
    let mut run: Option<(bool, u64, u64)> = None;
    let mut offset = 0;
    while offset < end {
        let (is_allocated, len) = allocated(&disk, offset, end).await?;
        if len == 0 {
            return Err(Failure::Error("Unexpected end of image".into()));
        }
        run = Some(match run {
            Some((same, start, sum)) if same == is_allocated => (same, start, sum + len),
            other => {
                print_run(shell, other);
                (is_allocated, offset, len)
            }
        });
        offset += len;
    }
    print_run(shell, run);
    Ok(())
}

async fn allocated(disk: &Disk, offset: u64, end: u64) -> Result<(bool, u64), Failure> {
    let result = disk.allocated(offset, end - offset).await;
    result.map_err(|errno| {
        let text = error_text(errno);
        Failure::Error(format!("Failed to get allocation status: {text}"))
    })
}

fn print_run(shell: &Shell, run: Option<(bool, u64, u64)>) {
    if let Some((is_allocated, offset, len)) = run {
        let what = if is_allocated {
            "    allocated"
        } else {
            "not allocated"
        };
        let (size, place) = (report::size(len), report::size(offset));
        shell.out.line(&format!(
            "{size} ({len:#x}) bytes {what} at offset {place} ({offset:#x})"
        ));
    }
}
