//! `zone_report`, `zone_open`, `zone_close`, `zone_finish`, `zone_reset`,
//! `zone_append`: zoned devices.

use std::rc::Rc;

use super::memory::{FILL, Memory, offset_and_lengths, sum};
use super::{Call, Command, Failure, Outcome, PLAIN, size};
use crate::io::disk::ZoneOperation;
use crate::io::shell::Shell;

pub(super) const REPORT: Command = Command {
    name: "zone_report",
    alias: Some("zrp"),
    arguments: Some("offset number"),
    one_line: "report zone information",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(report(shell, call)),
    ..PLAIN
};

pub(super) const OPEN: Command = Command {
    name: "zone_open",
    alias: Some("zo"),
    arguments: Some("offset len"),
    one_line: "explicit open a range of zones in zone block device",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(manage(shell, call, ZoneOperation::Open, "zone open")),
    ..PLAIN
};

pub(super) const CLOSE: Command = Command {
    name: "zone_close",
    alias: Some("zc"),
    arguments: Some("offset len"),
    one_line: "close a range of zones in zone block device",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(manage(shell, call, ZoneOperation::Close, "zone close")),
    ..PLAIN
};

pub(super) const FINISH: Command = Command {
    name: "zone_finish",
    alias: Some("zf"),
    arguments: Some("offset len"),
    one_line: "finish a range of zones in zone block device",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(manage(shell, call, ZoneOperation::Finish, "zone finish")),
    ..PLAIN
};

pub(super) const RESET: Command = Command {
    name: "zone_reset",
    alias: Some("zrs"),
    arguments: Some("offset len"),
    one_line: "reset a zone write pointer in zone block device",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(manage(shell, call, ZoneOperation::Reset, "zone reset")),
    ..PLAIN
};

pub(super) const APPEND: Command = Command {
    name: "zone_append",
    alias: Some("zap"),
    arguments: Some("offset len [len..]"),
    one_line: "append write a number of bytes at a specified offset",
    min: 3,
    max: Some(4),
    run: |shell, call| Box::pin(append(shell, call)),
    ..PLAIN
};

async fn report(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let (offset, count) = (size(&call.arguments[0])?, size(&call.arguments[1])?);
    let Ok(count) = u32::try_from(count) else {
        let text = "Number of zones must be less than 2^32";
        return Err(Failure::Said(text.into()));
    };
    let zones = shell.disk().zone_report(offset, count).await;
    let zones = zones.map_err(|errno| Failure::failed("zone report", errno))?;
    for zone in zones {
        shell.out.line(&format!(
            "start: {:#x}, len {:#x}, cap {:#x}, wptr {:#x}, zcond:{}, [type: {}]",
            zone.start, zone.len, zone.capacity, zone.write_pointer, zone.condition, zone.kind
        ));
    }
    Ok(())
}

async fn manage(shell: &Rc<Shell>, call: &Call, operation: ZoneOperation, what: &str) -> Outcome {
    let (offset, len) = (size(&call.arguments[0])?, size(&call.arguments[1])?);
    let result = shell.disk().zone_manage(operation, offset, len).await;
    result.map_err(|errno| Failure::failed(what, errno))
}

async fn append(shell: &Rc<Shell>, call: &Call) -> Outcome {
    // One option is looked for, and any that is found counts as this one.
    let mut getopt = call.getopt("p");
    let shows_sector = match getopt.next() {
        Ok(given) => given.is_some(),
        Err(unusable) => {
            shell.out.complain(&unusable.to_string());
            true
        }
    };
    let words = getopt.rest();
    let (offset, lengths) = offset_and_lengths(&words)?;
    let offset = size(offset)?;
    let len = sum(lengths)?;
    let failed = |errno| Failure::failed("zone append", errno);
    let memory = Memory::filled(shell, len, FILL).await;
    let Memory { buf, window } = memory.map_err(failed)?;
    let (result, _) = shell.disk().zone_append(offset, buf, window).await;
    let place = result.map_err(failed)?;
    if shows_sector {
        let sector = place / 512;
        shell
            .out
            .line(&format!("After zap done, the append sector is {sector:#x}"));
    }
    Ok(())
}
