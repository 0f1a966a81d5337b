//! The control task: it owns the graph and the jobs, takes one request after the
//! other, and tells all monitors what happens.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ringback_block::graph::Graph;
use ringback_block::job::{Bell, Jobs};
use ringback_block::metrics;
use ringback_block::notice::{Notice, Notify};
use ringback_qmp_shim::command::Command;
use ringback_qmp_shim::event::Event;
use ringback_qmp_shim::wire::{Incoming, Request, Session};
use ringback_ring::Shard;
use serde_json::{Value, json};

use super::backends::Backend;
use super::chardev::Writer;
use super::exports::Exports;
use super::human::Lodger;
use super::inbox::{Address, Inbox, Message};
use super::objects::Objects;
use super::scrape::ScrapeServer;
use crate::io;
use crate::open::Opened;

/// A monitor on a character device, with or without somebody who talks.
struct Monitor {
    pretty: bool,
    session: Session,
    writer: Option<Writer>,
}

/// What is done when a command has been answered.
pub(super) type Later = Box<dyn AsyncLater>;

/// Work that the answer of a command does not wait for.
pub(super) trait AsyncLater {
    /// Does it.
    fn run<'a>(
        self: Box<Self>,
        control: &'a mut Control,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;
}

/// Everything that commands work on.
pub(super) struct Control {
    pub(super) shard: Shard,
    pub(super) graph: Graph,
    pub(super) jobs: Jobs,
    /// What is known of each node beside its place in the graph.
    pub(super) nodes: BTreeMap<String, Opened>,
    pub(super) later: Vec<Later>,
    /// Drives and devices, in the order in which they came.
    pub(super) backends: Vec<Backend>,
    /// Somebody has said `stop`.
    pub(super) is_stopped: bool,
    /// Names of devices that others are connected to.
    pub(super) controllers: Vec<String>,
    /// Runs `qemu-io` commands.
    pub(super) monitor_shell: io::monitor::Monitor,
    pub(super) lodgers: Vec<Lodger>,
    pub(super) objects: Objects,
    pub(super) exports: Exports,
    /// Images that were opened for a job.
    pub(super) job_targets: Vec<String>,
    pub(super) chardevs: Vec<String>,
    pub(super) address: Address,
    /// Who gives latencies out over HTTP.
    pub(super) scraped: Option<ScrapeServer>,
    /// What had been measured when somebody asked for a fresh start.
    pub(super) measured_before: Option<metrics::Snapshot>,
    monitors: BTreeMap<String, Monitor>,
    /// The monitor and the request that ended the process.
    quit: Option<Quit>,
}

enum Quit {
    BySignal,
    ByRequest { chardev: String, request: Request },
}

impl Control {
    pub(super) fn new(shard: &Shard, address: Address) -> Self {
        let bell_address = address.clone();
        Self {
            shard: shard.clone(),
            graph: Graph::new(),
            jobs: Jobs::new(Bell::new(move || bell_address.send(Message::Job))),
            nodes: BTreeMap::new(),
            later: Vec::new(),
            backends: Vec::new(),
            is_stopped: false,
            controllers: Vec::new(),
            monitor_shell: io::monitor::Monitor::new(shard),
            lodgers: Vec::new(),
            objects: Objects::default(),
            exports: Exports::default(),
            job_targets: Vec::new(),
            chardevs: Vec::new(),
            address,
            scraped: None,
            measured_before: None,
            monitors: BTreeMap::new(),
            quit: None,
        }
    }

    /// Makes a character device known.
    pub(super) fn add_chardev(&mut self, id: &str) {
        self.chardevs.push(id.into());
    }

    /// Lets a character device be a monitor.
    ///
    /// # Errors
    ///
    /// The reason, in QEMU's words.
    pub(super) fn add_monitor(&mut self, chardev: &str, pretty: bool) -> Result<(), String> {
        if !self.chardevs.iter().any(|id| id == chardev) {
            return Err(format!("chardev \"{chardev}\" not found"));
        }
        if self.monitors.contains_key(chardev) {
            return Err(format!("chardev '{chardev}' is already in use"));
        }
        let monitor = Monitor {
            pretty,
            session: Session::new(pretty),
            writer: None,
        };
        self.monitors.insert(chardev.into(), monitor);
        Ok(())
    }

    pub(super) fn query_chardev(&self) -> Value {
        let entry = |id: &String| {
            let monitor = self.monitors.get(id);
            let is_open = monitor.is_some_and(|monitor| monitor.writer.is_some());
            json!({ "label": id, "filename": "", "frontend-open": is_open })
        };
        self.chardevs.iter().map(entry).collect()
    }

    /// What nodes have to say goes to the log and to the monitors.
    pub(super) fn notify(&self) -> Notify {
        let address = self.address.clone();
        Notify::new(move |notice| match notice {
            Notice::ImageCorrupt {
                node,
                message,
                fatal,
                span,
            } => {
                tracing::error!(node, "the image is corrupt: {message}");
                let event = Event::BlockImageCorrupted {
                    device: String::new(),
                    node_name: Some(node),
                    msg: message,
                    offset: span.map(|span| span.offset.cast_signed()),
                    size: span.map(|span| span.len.cast_signed()),
                    fatal,
                };
                address.send(Message::Event {
                    name: event.name(),
                    data: event.data().unwrap_or_default(),
                });
            }
            Notice::WriteThreshold {
                node,
                threshold,
                exceeded,
            } => {
                let event = Event::BlockWriteThreshold {
                    node_name: node,
                    amount_exceeded: exceeded,
                    write_threshold: threshold,
                };
                address.send(Message::Event {
                    name: event.name(),
                    data: event.data().unwrap_or_default(),
                });
            }
            Notice::Error(text) => tracing::error!("{text}"),
            Notice::Warning(text) | Notice::Message(text) => tracing::warn!("{text}"),
        })
    }

    /// Until somebody wants the process to end.
    pub(super) async fn run(mut self) {
        let inbox = self.shard.local::<Inbox>();
        while self.quit.is_none() {
            match inbox.next().await {
                Message::Connected { chardev, writer } => self.connect(&chardev, writer),
                Message::Disconnected { chardev } => self.disconnect(&chardev),
                Message::Received { chardev, bytes, .. } => self.receive(&chardev, &bytes).await,
                Message::Job => {}
                Message::Created { job, result } => {
                    self.jobs
                        .end_task(&self.shard, &mut self.graph, &job, result)
                        .await;
                }
                Message::ExportIdle { number } => self.finish_export(number).await,
                Message::Event { name, data } => self.broadcast(name, Some(&data)),
                Message::Quit => self.quit = Some(Quit::BySignal),
            }
            self.step().await;
        }
        self.shut_down().await;
    }

    fn connect(&mut self, chardev: &str, writer: Writer) {
        let Some(monitor) = self.monitors.get_mut(chardev) else {
            return;
        };
        monitor.session = Session::new(monitor.pretty);
        writer.send(&monitor.session.greeting());
        monitor.writer = Some(writer);
    }

    fn disconnect(&mut self, chardev: &str) {
        if let Some(monitor) = self.monitors.get_mut(chardev) {
            monitor.writer = None;
        }
    }

    async fn receive(&mut self, chardev: &str, bytes: &[u8]) {
        let Some(monitor) = self.monitors.get_mut(chardev) else {
            return;
        };
        for incoming in monitor.session.receive(bytes) {
            match incoming {
                Incoming::Answer(line) => self.answer(chardev, &line),
                Incoming::Request(request) => self.serve(chardev, request).await,
            }
            if self.quit.is_some() {
                // Nobody answers what comes behind it.
                return;
            }
        }
    }

    async fn serve(&mut self, chardev: &str, request: Request) {
        let command = Command::read(&request.command, &request.arguments);
        if matches!(command, Ok(Command::Quit)) {
            self.quit = Some(Quit::ByRequest {
                chardev: chardev.into(),
                request,
            });
            return;
        }
        let result = match command {
            Ok(command) => self.execute(command).await,
            Err(error) => Err(error),
        };
        self.tell_job_events();
        let Some(monitor) = self.monitors.get(chardev) else {
            return;
        };
        let id = request.id.as_ref();
        let line = match result {
            Ok(value) => monitor.session.success(id, &value),
            Err(error) => monitor.session.failure(id, &error),
        };
        self.answer(chardev, &line);
        for later in std::mem::take(&mut self.later) {
            later.run(self).await;
            self.tell_job_events();
        }
        self.step().await;
    }

    fn answer(&self, chardev: &str, line: &str) {
        let writer = self.monitors.get(chardev);
        if let Some(writer) = writer.and_then(|monitor| monitor.writer.as_ref()) {
            writer.send(line);
        }
    }

    /// Takes note of what jobs have done, and tells it.
    pub(super) async fn step(&mut self) {
        self.jobs.step(&self.shard, &mut self.graph).await;
        self.tell_job_events();
        self.part_from_lodgers().await;
        self.part_from_job_targets().await;
        self.forget_gone_nodes();
    }

    /// Nodes that came and went with a job.
    pub(super) fn forget_gone_nodes(&mut self) {
        let graph = &self.graph;
        self.nodes.retain(|name, _| graph.contains(name));
    }

    fn tell_job_events(&mut self) {
        for event in self.jobs.take_events() {
            self.tell(&super::jobs::event(event));
        }
    }

    pub(super) fn tell(&self, event: &Event) {
        self.broadcast(event.name(), event.data().as_ref());
    }

    fn broadcast(&self, name: &str, data: Option<&Value>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        for monitor in self.monitors.values() {
            if let Some(writer) = &monitor.writer
                && monitor.session.is_negotiated()
            {
                let (seconds, microseconds) = (now.as_secs(), now.subsec_micros());
                writer.send(&monitor.session.event(name, data, seconds, microseconds));
            }
        }
    }

    /// Clients first, then jobs, other users, images; the last word is the answer.
    async fn shut_down(&mut self) {
        // What a breakpoint holds would be waited for.
        self.graph.resume_all_requests();
        self.stop_metrics().await;
        self.stop_exports().await;
        self.jobs.end_all(&self.shard, &mut self.graph).await;
        self.tell_job_events();
        self.close_all_nodes().await;
        if let Some(Quit::ByRequest { chardev, request }) = self.quit.take()
            && let Some(monitor) = self.monitors.get(&chardev)
        {
            let empty = Value::Object(serde_json::Map::new());
            let line = monitor.session.success(request.id.as_ref(), &empty);
            self.answer(&chardev, &line);
        }
        for monitor in std::mem::take(&mut self.monitors).into_values() {
            if let Some(writer) = monitor.writer {
                // The writer's thread needs none of this one's help.
                self.shard.blocking(move || writer.finish()).await;
            }
        }
    }
}
