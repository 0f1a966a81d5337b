//! `help`, `quit`, `sleep`, `sigraise`, `abort`: the shell itself.

use std::rc::Rc;

use nix::sys::signal::{Signal, raise};

use super::{Call, Command, Failure, Needs, Outcome, PLAIN, find, known, size};
use crate::io::number;
use crate::io::shell::Shell;

pub(super) const HELP: Command = Command {
    name: "help",
    alias: Some("?"),
    arguments: Some("[command]"),
    one_line: "help for one or all commands",
    max: Some(1),
    needs: Needs::Nothing,
    run: |shell, call| Box::pin(std::future::ready(help(shell, call))),
    ..PLAIN
};

pub(super) const QUIT: Command = Command {
    name: "quit",
    alias: Some("q"),
    one_line: "exit the program",
    max: None,
    needs: Needs::Nothing,
    in_monitor: false,
    run: |shell, _| {
        shell.program().quit();
        Box::pin(std::future::ready(Ok(())))
    },
    ..PLAIN
};

pub(super) const SLEEP: Command = Command {
    name: "sleep",
    one_line: "waits for the given value in milliseconds",
    min: 1,
    max: Some(1),
    needs: Needs::Nothing,
    run: |shell, call| Box::pin(sleep(shell, call)),
    ..PLAIN
};

pub(super) const SIGRAISE: Command = Command {
    name: "sigraise",
    arguments: Some("signal"),
    one_line: "raises a signal",
    help: "
 Sends this program a signal, by its number.

 Example:
 'sigraise 15' - SIGTERM, which ends it

",
    min: 1,
    max: Some(1),
    needs: Needs::Nothing,
    run: |shell, call| Box::pin(std::future::ready(sigraise(shell, call))),
    ..PLAIN
};

pub(super) const ABORT: Command = Command {
    name: "abort",
    one_line: "simulate a program crash using abort(3)",
    needs: Needs::Nothing,
    // What was printed and not flushed is lost, as in a crash.
    run: |_, _| std::process::abort(),
    ..PLAIN
};

fn help(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let Some(word) = call.arguments.first() else {
        for command in known(shell.is_monitor()) {
            shell.out.line(&command.usage());
        }
        shell
            .out
            .line("\nUse 'help commandname' for extended help.");
        return Ok(());
    };
    let Some(command) = find(word, shell.is_monitor()) else {
        return Err(Failure::Said(format!("command {word} not found")));
    };
    shell.out.line(&command.usage_as(word));
    if !command.help.is_empty() {
        shell.out.line(command.help);
    }
    Ok(())
}

async fn sleep(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let milliseconds = number::milliseconds(&call.arguments[0]).map_err(Failure::Said)?;
    let duration_ns = milliseconds.saturating_mul(1_000_000);
    let deadline_ns = shell.shard.now_ns().saturating_add(duration_ns);
    shell.shard.sleep_until(deadline_ns).await;
    Ok(())
}

/// One more than the largest number of a signal.
const SIGNALS: u64 = 65;
/// From here on signals have no names.
const REAL_TIME: u64 = 32;

fn sigraise(shell: &Rc<Shell>, call: &Call) -> Outcome {
    let argument = &call.arguments[0];
    let number = size(argument)?;
    if number > SIGNALS {
        return Err(Failure::Said(format!(
            "signal argument '{argument}' is too large to be a valid signal"
        )));
    }
    shell.out.flush();
    if number == 0 || number == SIGNALS {
        return Ok(());
    }
    let signal = i32::try_from(number)
        .ok()
        .filter(|_| number < REAL_TIME)
        .and_then(|number| Signal::try_from(number).ok());
    match signal {
        Some(signal) => raise(signal).map_err(|errno| Failure::failed("sigraise", errno)),
        None => Err(Failure::Said(format!(
            "signal {number} is a real-time signal; these are not supported"
        ))),
    }
}
