//! A client of QMP.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Nothing that is measured takes longer.
const LIMIT: Duration = Duration::from_secs(900);

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
        let request = json!({ "execute": command, "arguments": arguments });
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(|error| format!("{command}: {error}"))?;
        loop {
            let mut line = self.line().map_err(|error| format!("{command}: {error}"))?;
            if line.get("event").is_some() {
                self.events.push_back(line);
            } else if let Some(desc) = line["error"]["desc"].as_str() {
                return Err(format!("{command} {arguments}: {desc}"));
            } else {
                return Ok(line["return"].take());
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
        let is_it = |data: &Value| data["id"] == job && data["status"] == "null";
        self.wait_event("JOB_STATUS_CHANGE", is_it).map(drop)
    }
}
