//! `ringback report`: what a running daemon has measured of itself, asked over QMP.
//!
//! The client says what it has to and reads what it needs; events in between are passed over.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args as ClapArgs;
use hdrhistogram::Histogram;
use ringback_block::metrics;
use serde::Deserialize;
use serde_json::{Value, json};

use super::latency::LatencySummary;
use super::{hgrm, interchange, table};

/// How long a daemon may take for each of its messages: one that is busy answers late, one whose
/// monitor somebody else holds does not answer at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest message that is read. Those that are expected have some tens of KiB.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;

/// Show how long the operations of a running daemon take.
///
/// Counted is what the engine does for guests and backups, by class; classes of
/// which there was nothing are shown with a dash.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// The UNIX socket of a QMP monitor of the daemon; nobody else may be using it
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Let the next report count from this one on
    #[arg(long)]
    reset: bool,
    /// Also write the latencies as percentile files, one a class, into this directory
    #[arg(long, value_name = "DIR")]
    hgrm: Option<PathBuf>,
}

/// Runs `ringback report`.
///
/// # Errors
///
/// The message for standard error.
pub(crate) fn run(args: &Args) -> Result<ExitCode, String> {
    let at_socket = |error: String| format!("{}: {error}", args.qmp.display());
    let stream = UnixStream::connect(&args.qmp).map_err(|error| at_socket(error.to_string()))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(|error| at_socket(error.to_string()))?;
    let classes = ask(&stream, args.reset).map_err(at_socket)?;
    if let Some(directory) = &args.hgrm {
        let files: Vec<_> = classes
            .iter()
            .map(|class| (class.name.as_str(), &class.histogram))
            .collect();
        hgrm::write_files(directory, &files)
            .map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    let rows: Vec<_> = classes
        .into_iter()
        .map(|class| (class.name, LatencySummary::of(&class.histogram)))
        .collect();
    print!("{}", table::render_classes(&rows));
    Ok(ExitCode::SUCCESS)
}

/// A class as the daemon tells it.
#[derive(Debug, PartialEq)]
struct Class {
    name: String,
    histogram: Histogram<u64>,
}

/// What of an answer is used; the rest is in the histogram.
#[derive(Deserialize)]
struct Entry {
    class: String,
    /// Whose clients, if it is about those of an export.
    export: Option<String>,
    histogram: Option<String>,
}

/// Talks with a daemon from its greeting on.
fn ask(stream: impl Read + Write, reset: bool) -> Result<Vec<Class>, String> {
    let mut monitor = Monitor(BufReader::new(stream));
    let greeting = monitor.message()?;
    if greeting.get("QMP").is_none() {
        return Err("this is no QMP monitor".into());
    }
    monitor.execute("qmp_capabilities", &json!({}))?;
    let answer = monitor.execute("x-query-latency-histograms", &json!({ "reset": reset }))?;
    let entries: Vec<Entry> = serde_json::from_value(answer).map_err(|error| error.to_string())?;
    entries.into_iter().map(class).collect()
}

fn class(entry: Entry) -> Result<Class, String> {
    let histogram = match &entry.histogram {
        Some(text) => interchange::decode(text)
            .map_err(|error| format!("the histogram of '{}': {error}", entry.class))?,
        None => metrics::histogram(),
    };
    // It may become the name of a file.
    if entry.class.is_empty() || entry.class.contains(['/', '\0']) {
        return Err(format!("'{}' is no class", entry.class));
    }
    let name = match entry.export {
        Some(id) => format!("{}-{}", entry.class, id.replace(['/', '\0'], "_")),
        None => entry.class,
    };
    Ok(Class { name, histogram })
}

struct Monitor<S>(BufReader<S>);

impl<S: Read + Write> Monitor<S> {
    fn message(&mut self) -> Result<Value, String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(MESSAGE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => "the daemon does not answer".to_owned(),
            _ => error.to_string(),
        })?;
        if line.is_empty() {
            return Err("the daemon has hung up".into());
        }
        serde_json::from_slice(&line).map_err(|error| format!("not QMP: {error}"))
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sink = self.0.get_mut();
        sink.write_all(format!("{request}\n").as_bytes())
            .and_then(|()| sink.flush())
            .map_err(|error| error.to_string())?;
        loop {
            let mut message = self.message()?;
            if let Some(desc) = message.pointer("/error/desc") {
                let desc = desc.as_str().unwrap_or_default();
                return Err(format!("{command}: {desc}"));
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that says what it says, whatever it is asked.
    struct Script {
        said: std::io::Cursor<String>,
        heard: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.said.read(buf)
        }
    }

    impl Write for Script {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.heard.write(buf)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn script(lines: &[Value]) -> Script {
        let said: Vec<String> = lines.iter().map(|line| format!("{line}\r\n")).collect();
        Script {
            said: std::io::Cursor::new(said.concat()),
            heard: Vec::new(),
        }
    }

    fn asked(lines: &[Value]) -> Result<Vec<Class>, String> {
        ask(script(lines), false)
    }

    #[test]
    fn events_are_passed_over() {
        let mut histogram = metrics::histogram();
        histogram.record(5000).unwrap();
        let event = json!({ "event": "JOB_STATUS_CHANGE", "data": {} });
        let answer = json!({ "return": [
            { "class": "cbw-save", "count": 1, "histogram": interchange::encode(&histogram) },
            { "class": "cbw-drain", "count": 0 },
        ]});
        let greeting = json!({ "QMP": {} });
        let mut monitor = script(&[greeting, json!({ "return": {} }), event, answer]);
        let classes = ask(&mut monitor, true).expect("an answer");
        let names: Vec<_> = classes.iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, ["cbw-save", "cbw-drain"]);
        assert_eq!(classes[0].histogram, histogram);
        assert!(classes[1].histogram.is_empty());
        let heard = String::from_utf8(monitor.heard).unwrap();
        let last: Value = serde_json::from_str(heard.lines().last().unwrap()).unwrap();
        assert_eq!(last["execute"], "x-query-latency-histograms");
        assert_eq!(last["arguments"], json!({ "reset": true }));
    }

    #[test]
    fn what_is_no_daemon_of_ours_is_told() {
        let greeting = json!({ "QMP": {} });
        let done = json!({ "return": {} });
        let refused = json!({ "error": { "class": "CommandNotFound", "desc": "no such thing" } });
        for (lines, wanted) in [
            (vec![], "the daemon has hung up"),
            (vec![json!({ "hello": 1 })], "this is no QMP monitor"),
            (
                vec![greeting.clone(), done.clone(), refused],
                "x-query-latency-histograms: no such thing",
            ),
            (
                vec![
                    greeting,
                    done,
                    json!({ "return": [{ "class": "../x", "count": 0 }] }),
                ],
                "'../x' is no class",
            ),
        ] {
            assert_eq!(asked(&lines), Err(wanted.to_owned()));
        }
    }
}
