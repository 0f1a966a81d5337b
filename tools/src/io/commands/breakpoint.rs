//! `break`, `remove_break`, `resume`, `wait_break`: requests that are held at an
//! event of a blkdebug filter.

use std::rc::Rc;

use super::{Call, Command, Failure, Outcome, PLAIN};
use crate::io::shell::Shell;
use ringback_ring::error_text;

pub(super) const BREAK: Command = Command {
    name: "break",
    arguments: Some("event tag"),
    one_line: "sets a breakpoint on event and tags the stopped request as tag",
    min: 2,
    max: Some(2),
    run: |shell, call| Box::pin(std::future::ready(set(shell, call))),
    ..PLAIN
};

pub(super) const REMOVE_BREAK: Command = Command {
    name: "remove_break",
    arguments: Some("tag"),
    one_line: "remove a breakpoint by tag",
    min: 1,
    max: Some(1),
    run: |shell, call| Box::pin(std::future::ready(remove(shell, call))),
    ..PLAIN
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    arguments: Some("tag"),
    one_line: "resumes the request tagged as tag",
    min: 1,
    max: Some(1),
    run: |shell, call| Box::pin(std::future::ready(resume(shell, call))),
    ..PLAIN
};

pub(super) const WAIT_BREAK: Command = Command {
    name: "wait_break",
    arguments: Some("tag"),
    one_line: "waits for the suspension of a request",
    min: 1,
    max: Some(1),
    run: |shell, call| Box::pin(wait(shell, call)),
    ..PLAIN
};

fn set(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let result = shell
        .disk()
        .set_breakpoint(&shell.out, &call.arguments[0], &call.arguments[1]);
    result
        .map_err(|errno| Failure::Said(format!("Could not set breakpoint: {}", error_text(errno))))
}

fn remove(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let tag = &call.arguments[0];
    let result = shell.disk().remove_breakpoints(tag);
    result.map_err(|errno| {
        let text = error_text(errno);
        Failure::Said(format!("Could not remove breakpoint {tag}: {text}"))
    })
}

fn resume(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let result = shell.disk().resume(&call.arguments[0]);
    result
        .map_err(|errno| Failure::Said(format!("Could not resume request: {}", error_text(errno))))
}

/// QEMU waits for ever where there can be no breakpoint.
async fn wait(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let result = shell.disk().wait_suspended(&call.arguments[0]).await;
    result.map_err(|errno| {
        Failure::Said(format!("Could not wait for request: {}", error_text(errno)))
    })
}
