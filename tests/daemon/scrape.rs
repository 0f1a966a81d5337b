//! `--metrics`: what Prometheus gets, and what it and others are refused.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ringback_tests::process::LIMIT;
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::scratch::Scratch;
use serde_json::json;

use crate::beside::Talk;
use crate::latency_classes::{EXPORTED, SNAPSHOT, client, overwrite};

const METRICS: &[&str] = &["--metrics", "unix:metrics.sock"];

fn connect(directory: &Path) -> UnixStream {
    let stream = UnixStream::connect(directory.join("metrics.sock")).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    stream
}

/// What comes until the other side hangs up: the head and the body.
#[track_caller]
fn answer(mut stream: impl Read) -> (String, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    let len = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(format!("{head}\r\n").contains(&len), "{text}");
    (head.to_owned(), body.to_owned())
}

#[track_caller]
fn ask(directory: &Path, request: &str) -> (String, String) {
    let mut stream = connect(directory);
    stream.write_all(request.as_bytes()).expect("a reader");
    answer(stream)
}

/// Every sample by its name and labels.
#[track_caller]
fn scrape(directory: &Path) -> BTreeMap<String, f64> {
    let (head, body) = ask(directory, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        (name.to_owned(), value)
    });
    samples.collect()
}

fn saves(samples: &BTreeMap<String, f64>, what: &str) -> f64 {
    samples[&format!("ringback_latency_seconds_{what}{{class=\"cbw-save\"}}")]
}

#[test]
fn histograms_only_grow() {
    let mut talk = Talk::start(Program::Ringback, &[SNAPSHOT, METRICS].concat());
    let none = scrape(talk.directory());
    assert_eq!((saves(&none, "count"), saves(&none, "sum")), (0.0, 0.0));
    overwrite(&mut talk, 0..3);
    let three = scrape(talk.directory());
    assert_eq!(saves(&three, "count"), 3.0);
    assert!(saves(&three, "sum") > 0.0);
    // Who asks over QMP for a fresh start does not disturb.
    let reset = json!({ "reset": true });
    talk.ask("x-query-latency-histograms", &reset);
    let again = scrape(talk.directory());
    assert_eq!(saves(&again, "count"), 3.0);
    assert_eq!(saves(&again, "sum"), saves(&three, "sum"));
    overwrite(&mut talk, 3..5);
    let five = scrape(talk.directory());
    assert_eq!(saves(&five, "count"), 5.0);
    assert!(saves(&five, "sum") > saves(&three, "sum"));
    for (name, value) in &three {
        assert!(five[name] >= *value, "{name}");
    }
    talk.finish_as_it_was();
}

#[test]
fn every_export_has_its_own() {
    let talk = Talk::start(Program::Ringback, &[EXPORTED, METRICS].concat());
    client(&talk, &[], &["write 0 4k", "write 4k 4k"]);
    let samples = scrape(talk.directory());
    let of_writes = |what| {
        let name = format!("ringback_export_latency_seconds_{what}");
        samples[&format!("{name}{{export=\"vm\",request=\"write\"}}")]
    };
    assert_eq!(of_writes("count"), 2.0);
    assert!(of_writes("sum") > 0.0);
    talk.finish_as_it_was();
}

#[test]
fn buckets_rise_to_the_count() {
    let mut talk = Talk::start(Program::Ringback, &[SNAPSHOT, METRICS].concat());
    overwrite(&mut talk, 0..4);
    let (_, body) = ask(
        talk.directory(),
        "GET /metrics HTTP/1.1\r\nAccept: text/plain\r\n\r\n",
    );
    let buckets: Vec<(f64, f64)> = body
        .lines()
        .filter(|line| line.contains("_bucket{") && line.contains("class=\"cbw-save\""))
        .map(|line| {
            let le = line
                .split("le=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let le = le.expect("a boundary").replace("+Inf", "inf");
            let (_, count) = line.rsplit_once(' ').expect("a value");
            (le.parse().expect(line), count.parse().expect(line))
        })
        .collect();
    assert_eq!(buckets.len(), 20, "{body}");
    assert!(
        buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
        "{buckets:?}"
    );
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 4.0)));
    talk.finish_as_it_was();
}

#[test]
fn who_takes_openmetrics_is_told_it_is_that() {
    let talk = Talk::start(Program::Ringback, METRICS);
    let accept = "Accept: application/openmetrics-text;version=1.0.0";
    let request = format!("GET /metrics HTTP/1.1\r\n{accept}\r\n\r\n");
    let (head, body) = ask(talk.directory(), &request);
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"));
    assert!(body.ends_with("# EOF\n"), "{body}");
    talk.finish_as_it_was();
}

#[test]
fn bad_requests_are_answered_and_harm_nobody() {
    let talk = Talk::start(Program::Ringback, METRICS);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(9000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("\0\0\0\0", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let (head, body) = ask(talk.directory(), request);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{head}"
        );
        assert_eq!(body, format!("{status}\n"));
    }
    // Who goes in the middle is not answered.
    let mut stream = connect(talk.directory());
    stream.write_all(b"GET /met").expect("a reader");
    stream.shutdown(Shutdown::Write).expect("an open socket");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an end");
    assert!(rest.is_empty());
    scrape(talk.directory());
    talk.finish_as_it_was();
}

#[test]
fn silent_clients_take_places_for_a_while_and_no_commands() {
    let mut talk = Talk::start(Program::Ringback, &[SNAPSHOT, METRICS].concat());
    let silent: Vec<_> = (0..8).map(|_| connect(talk.directory())).collect();
    overwrite(&mut talk, 0..1);
    // It waits for a place.
    let samples = scrape(talk.directory());
    assert_eq!(saves(&samples, "count"), 1.0);
    for stream in silent {
        let (head, _) = answer(stream);
        assert!(
            head.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{head}"
        );
    }
    talk.finish_as_it_was();
}

#[test]
fn it_is_given_out_over_tcp() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|taken| taken.local_addr());
    let address = free.expect("a port").to_string();
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &["--metrics", &address]);
    let mut stream = TcpStream::connect(&address).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        .expect("a reader");
    let (head, body) = answer(stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.contains("ringback_latency_seconds_count{class=\"cbw-save\"} 0\n"));
    daemon.quit();
    assert!(TcpStream::connect(&address).is_err(), "nobody listens");
}

#[test]
fn the_end_does_not_wait_for_clients() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let daemon = Daemon::start(Program::Ringback, scratch.path(), METRICS);
    let mut silent: Vec<_> = (0..10).map(|_| connect(scratch.path())).collect();
    daemon.quit();
    assert!(!scratch.join("metrics.sock").exists());
    let first = silent.first_mut().expect("ten");
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).expect("an end");
    assert!(rest.is_empty());
}
