//! A client of QMP.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{Value, json};

use crate::command::LIMIT;

/// A monitor that is talked to.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    /// Not waited for yet.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Reads the greeting on a connection and gets ready for commands.
    pub(crate) fn new(stream: UnixStream) -> Result<Self, String> {
        stream
            .set_read_timeout(Some(LIMIT))
            .map_err(|error| error.to_string())?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: VecDeque::new(),
        };
        let greeting = qmp.line()?;
        if !greeting["QMP"].is_object() {
            return Err(format!("no greeting of a monitor: {greeting}"));
        }
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err("the daemon hung up".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
            Err(error) => Err(format!("nothing comes from the monitor: {error}")),
        }
    }

    /// Runs a command and answers what it returns. Events that come before stay.
    ///
    /// # Errors
    ///
    /// Its own, or the daemon is gone.
    pub(crate) fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let reply = self.attempt(command, arguments)?;
        reply.map_err(|error| refusal(command, arguments, &error))
    }

    /// Runs a command that not every daemon has: none where it is not known.
    pub(crate) fn run_if_known(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<Option<Value>, String> {
        match self.attempt(command, arguments)? {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error["class"] == "CommandNotFound" => Ok(None),
            Err(error) => Err(refusal(command, arguments, &error)),
        }
    }

    /// What a command returns, or its error as it came.
    fn attempt(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<Result<Value, Value>, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(|error| format!("{command}: {error}"))?;
        loop {
            let mut line = self.line().map_err(|error| format!("{command}: {error}"))?;
            if line.get("event").is_some() {
                self.events.push_back(line);
            } else if line.get("error").is_some() {
                return Ok(Err(line["error"].take()));
            } else {
                return Ok(Ok(line["return"].take()));
            }
        }
    }

    /// Waits for the first event of this name for which `is_it` holds, and answers
    /// its data.
    pub(crate) fn wait_event(
        &mut self,
        name: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let end = Instant::now() + LIMIT;
        let mut looked_at = 0;
        loop {
            let fits = |event: &Value| event["event"] == name && is_it(&event["data"]);
            if let Some(index) = self.events.iter().skip(looked_at).position(fits) {
                let event = self.events.remove(looked_at + index);
                return Ok(event.map_or(Value::Null, |mut event| event["data"].take()));
            }
            looked_at = self.events.len();
            if Instant::now() > end {
                return Err(format!("no event {name}"));
            }
            let line = self.line()?;
            if line.get("event").is_some() {
                self.events.push_back(line);
            }
        }
    }

    /// Waits until a job of this name has ended well.
    ///
    /// # Errors
    ///
    /// It has not.
    pub(crate) fn wait_completed(&mut self, job: &str) -> Result<(), String> {
        let data = self.wait_event("BLOCK_JOB_COMPLETED", |data| data["device"] == job)?;
        if let Some(error) = data["error"].as_str() {
            return Err(format!("job {job}: {error}"));
        }
        self.wait_gone(job)
    }

    /// Waits until a job of this name is no more.
    pub(crate) fn wait_gone(&mut self, job: &str) -> Result<(), String> {
        self.wait_status(job, "null")
    }

    /// Waits until a job of this name has come to a status.
    pub(crate) fn wait_status(&mut self, job: &str, status: &str) -> Result<(), String> {
        let is_it = |data: &Value| data["id"] == job && data["status"] == status;
        self.wait_event("JOB_STATUS_CHANGE", is_it).map(drop)
    }
}

fn refusal(command: &str, arguments: &Value, error: &Value) -> String {
    let desc = error["desc"].as_str().unwrap_or("no description");
    format!("{command} {arguments}: {desc}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that greets, and answers each command with the next of these lines.
    fn monitor(replies: &'static [&'static str]) -> Qmp {
        let (near, far) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            let mut far = far;
            far.write_all(b"{\"QMP\": {}}\n").unwrap();
            for reply in [r#"{"return": {}}"#].iter().chain(replies) {
                lines.next().unwrap().unwrap();
                far.write_all(format!("{reply}\n").as_bytes()).unwrap();
            }
        });
        Qmp::new(near).unwrap()
    }

    #[test]
    fn only_a_command_that_is_not_known_may_fail() {
        let mut qmp = monitor(&[
            r#"{"error": {"class": "CommandNotFound", "desc": "what?"}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no"}}"#,
            r#"{"return": [1]}"#,
        ]);
        let mut ask = || qmp.run_if_known("x-query-nothing", &json!({}));
        assert_eq!(ask(), Ok(None));
        assert!(ask().is_err_and(|error| error.ends_with(": no")));
        assert_eq!(ask(), Ok(Some(json!([1]))));
    }
}
