//! `blockdev-reopen`: nodes get other options while they are in use. And
//! `blockdev-set-active`.
//!
//! # What is compared
//!
//! The options of the command stand for all options of a node: what is not given
//! goes back to its default. Three kinds of them are told apart, as in QEMU:
//! those that every node has, and those that its driver can change (see
//! [`can_change`]); all others must be what they were.
//!
//! # Children
//!
//! A child that was defined inside its parent is reopened with it, since it takes
//! settings from it. Any other child is given by its name; another name puts
//! another node there.

use std::collections::BTreeMap;

use ringback_block::graph::GraphError;
use ringback_block::graph::reopen::{Change, Reopening};
use ringback_block::job::Status;
use ringback_qmp_shim::BlockdevOptions;
use ringback_qmp_shim::blockdev::qcow2::ImageFacts;
use ringback_qmp_shim::blockdev::{CommonOptions, DriverOptions, Settings};
use ringback_qmp_shim::command::BlockdevSetActive;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::open::{self as names, DriverNode, ImageName, OpenNode, flatten};
use ringback_ring::file::Cache;
use serde_json::{Map, Value, json};

use super::Reply;
use super::control::Control;
use crate::open::{Opened, policy, qcow2_options, reason};

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

/// A node and what it is to be.
struct Queued {
    name: String,
    node: DriverNode,
    /// It is reopened because its parent is.
    is_inner: bool,
}

/// Options of every node that can always change.
fn is_common(option: &str) -> bool {
    matches!(
        option,
        "node-name"
            | "discard"
            | "cache.direct"
            | "cache.no-flush"
            | "read-only"
            | "auto-read-only"
            | "detect-zeroes"
    )
}

/// Options that a driver can change, and those of them that must be given.
fn can_change(driver: &str, option: &str) -> bool {
    match driver {
        "raw" => matches!(option, "offset" | "size"),
        "qcow2" => {
            matches!(
                option,
                "lazy-refcounts"
                    | "pass-discard-request"
                    | "pass-discard-snapshot"
                    | "pass-discard-other"
                    | "discard-no-unref"
                    | "overlap-check"
                    | "cache-size"
                    | "l2-cache-size"
                    | "l2-cache-entry-size"
                    | "refcount-cache-size"
                    | "cache-clean-interval"
            ) || option.starts_with("overlap-check.")
        }
        _ => false,
    }
}

/// Children by the names of their options.
const CHILDREN: [&str; 5] = ["file", "backing", "image", "data-file", "target"];

/// Of an option of a child's own, such as `file.driver`: which child.
fn child_of(option: &str) -> Option<&'static str> {
    let (child, _) = option.split_once('.')?;
    CHILDREN.into_iter().find(|name| *name == child)
}

/// The options of a child that is defined inside.
fn inside(given: &Map<String, Value>, child: &str) -> Map<String, Value> {
    let options = given.iter().filter_map(|(option, value)| {
        let (name, rest) = option.split_once('.')?;
        (name == child).then(|| (rest.to_owned(), value.clone()))
    });
    options.collect()
}

fn driver_node(
    options: &Map<String, Value>,
    inherited: &Settings,
) -> Result<DriverNode, CommandError> {
    match names::open(None, options, inherited)? {
        OpenNode::Driver(node) => Ok(node),
        OpenNode::Probe(_) => Err(generic("Parameter 'driver' is missing")),
    }
}

/// So long a job may take to stand still, in nanoseconds: a target that hangs must
/// not keep the monitor for ever.
const STILL_NS: u64 = 10_000_000_000;

impl Control {
    pub(super) async fn blockdev_reopen(&mut self, options: &[BlockdevOptions]) -> Reply {
        if options.is_empty() {
            return Err(generic("Parameter 'options' must name at least one node"));
        }
        let mut queue = Vec::new();
        for options in options {
            self.queue(options, &mut queue)?;
        }
        let mut list = Vec::new();
        for queued in &queue {
            list.push(self.reopening(queued)?);
        }
        let paused = self.pause_running_jobs().await?;
        let result = self.graph.reopen(&self.shard, &list).await;
        self.let_jobs_go_on(&paused);
        self.step().await;
        self.unused_files_are_closed().await;
        result.map_err(|error| generic(reason(error)))?;
        self.learn_options(queue, &list).await;
        Ok(json!({}))
    }

    pub(super) fn blockdev_set_active(&self, set: &BlockdevSetActive) -> Reply {
        if let Some(name) = &set.node_name
            && !self.graph.contains(name)
        {
            return Err(not_found(name));
        }
        if set.active {
            // Every node is.
            return Ok(json!({}));
        }
        Err(generic(
            "blockdev-set-active: 'active': false is not supported",
        ))
    }

    /// A node of the command, and the nodes inside that follow it.
    fn queue(
        &self,
        options: &BlockdevOptions,
        queue: &mut Vec<Queued>,
    ) -> Result<(), CommandError> {
        let Some(name) = options.common.node_name.clone() else {
            return Err(generic("node-name not specified"));
        };
        let old = self.opened(&name)?;
        if options.common.force_share.unwrap_or(false) != old.settings.force_share {
            return Err(cannot_change("force-share"));
        }
        check_driver(&name, old)?;
        let flat = flatten(&options.to_json())?;
        check_resets(old, &flat)?;
        let node = driver_node(&flat, &Settings::default())?;
        self.queue_with_children(&name, node, false, queue)
    }

    fn opened(&self, name: &str) -> Result<&Opened, CommandError> {
        let known = self.nodes.get(name).filter(|_| self.graph.contains(name));
        known.ok_or_else(|| not_found(name))
    }

    fn queue_with_children(
        &self,
        name: &str,
        node: DriverNode,
        is_inner: bool,
        queue: &mut Vec<Queued>,
    ) -> Result<(), CommandError> {
        let settings = node.settings;
        let given = node.given().clone();
        let children: Vec<(&str, String)> = self
            .graph
            .children(name)
            .into_iter()
            .map(|(edge, child)| (edge, child.to_owned()))
            .collect();
        queue.push(Queued {
            name: name.to_owned(),
            node,
            is_inner,
        });
        for (edge, child) in children {
            let Some(inner) = self.nodes.get(&child) else {
                continue;
            };
            if inner.parent.as_deref() != Some(name) {
                continue;
            }
            let inherited = if edge == "backing" {
                settings.for_backing()
            } else {
                CommonOptions::default().settle(Some(&settings))
            };
            let options = inside(&given, edge);
            let node = match given.get(edge) {
                Some(Value::String(reference)) if *reference == child => {
                    driver_node(&inner.options, &inherited)?
                }
                None if !options.is_empty() => {
                    if options.contains_key("node-name") {
                        return Err(cannot_change("node-name"));
                    }
                    check_driver(&child, inner)?;
                    check_resets(inner, &options)?;
                    driver_node(&options, &inherited)?
                }
                _ => continue,
            };
            self.queue_with_children(&child, node, true, queue)?;
        }
        Ok(())
    }

    /// What the engine is to do, after everything has been compared.
    fn reopening(&self, queued: &Queued) -> Result<Reopening, CommandError> {
        let Queued { name, node, .. } = queued;
        let old = self.opened(name)?;
        let change = self.change(name, node, old)?;
        self.check_unchanged(name, queued, old)?;
        Ok(Reopening {
            node: name.clone(),
            policy: policy(old.driver, &node.settings),
            change,
        })
    }

    /// The child that a node is to have.
    fn new_child(
        &self,
        name: &str,
        edge: &str,
        given: &Map<String, Value>,
    ) -> Result<Option<String>, CommandError> {
        match given.get(edge) {
            Some(Value::String(child)) if self.graph.contains(child) => Ok(Some(child.clone())),
            Some(Value::String(child)) => Err(generic(format!(
                "Cannot find device='' nor node-name='{child}'"
            ))),
            Some(_) => Ok(None),
            None => {
                let present = self.child(name, &[edge]).map(str::to_owned);
                if !inside(given, edge).is_empty() {
                    let inner = present.as_ref().and_then(|child| self.nodes.get(child));
                    if inner.is_none_or(|inner| inner.parent.as_deref() != Some(name)) {
                        return Err(cannot_change(&format!("{edge}.driver")));
                    }
                }
                Ok(present)
            }
        }
    }

    fn change(&self, name: &str, node: &DriverNode, old: &Opened) -> Result<Change, CommandError> {
        if node.driver.name() != old.driver {
            return Ok(Change::Nothing);
        }
        let given = node.given();
        let file = |control: &Self| {
            let child = control.new_child(name, "file", given)?;
            child.ok_or_else(|| generic("Parameter 'file' is missing"))
        };
        Ok(match &node.driver {
            DriverOptions::File(_) | DriverOptions::HostDevice(_) => Change::File {
                write: !self.settings_of(name, node).read_only,
                cache: if node.settings.direct {
                    Cache::Direct
                } else {
                    Cache::Buffered
                },
            },
            DriverOptions::Nbd(_) => {
                let write = !self.settings_of(name, node).read_only;
                let export = self.graph.export(name);
                if write && export.is_some_and(|export| export.is_read_only_export()) {
                    return Err(generic("Can't reopen read-only NBD mount as read/write"));
                }
                Change::File {
                    write,
                    cache: Cache::Buffered,
                }
            }
            DriverOptions::Raw(raw) => Change::Raw {
                file: file(self)?,
                offset: raw.offset.unwrap_or(0),
                size: raw.size,
            },
            DriverOptions::Throttle(throttle) => {
                let group = throttle.throttle_group.clone();
                self.graph
                    .throttle_group(&group)
                    .map_err(|error: GraphError| generic(reason(error)))?;
                Change::Throttle {
                    file: file(self)?,
                    group,
                }
            }
            DriverOptions::Qcow2(options) => {
                if options.data_file.is_some() && self.child(name, &["data-file"]).is_none() {
                    return Err(cannot_change("data-file"));
                }
                let facts = image_facts(old);
                let opened = qcow2_options(options, &node.settings, facts, self.notify())
                    .map_err(generic)?;
                let says_backing =
                    given.contains_key("backing") || !inside(given, "backing").is_empty();
                if !says_backing && self.backing_of(name).is_some() {
                    return Err(generic(format!("backing is missing for '{name}'")));
                }
                let backing = self.new_child(name, "backing", given)?;
                let is_as_before = old.settings.read_only == node.settings.read_only
                    && old.settings.discard == node.settings.discard
                    && own_options(&old.options) == own_options(given);
                Change::Qcow2 {
                    file: file(self)?,
                    backing,
                    options: (!is_as_before).then(|| Box::new(opened)),
                }
            }
            _ => Change::Nothing,
        })
    }

    /// With `auto-read-only`, a file that could not be opened for writing stays as
    /// it is.
    fn settings_of(&self, name: &str, node: &DriverNode) -> Settings {
        let is_file = matches!(
            node.driver,
            DriverOptions::File(_) | DriverOptions::HostDevice(_) | DriverOptions::Nbd(_)
        );
        let was = self.nodes.get(name).map(|opened| opened.settings);
        let fell_back = was.is_some_and(|was| was.auto_read_only && was.read_only);
        Settings {
            read_only: node.settings.read_only
                || (is_file && node.settings.auto_read_only && fell_back),
            ..node.settings
        }
    }

    /// What the driver cannot change must be as it was.
    fn check_unchanged(
        &self,
        name: &str,
        queued: &Queued,
        old: &Opened,
    ) -> Result<(), CommandError> {
        let given = queued.node.given();
        if queued.node.driver.name() != old.driver {
            return Err(cannot_change("driver"));
        }
        for (option, value) in given {
            let changes_file = matches!(option.as_str(), "file" | "backing");
            if is_common(option)
                || option == "driver"
                || changes_file
                || can_change(old.driver, option)
                || (old.driver == "throttle" && option == "throttle-group")
            {
                continue;
            }
            if let Some(child) = child_of(option) {
                // Of a node inside, which has been looked at by itself.
                let inner = self.child(name, &[child]).map(str::to_owned);
                let inner = inner.and_then(|inner| self.nodes.get(&inner));
                if inner.is_some_and(|inner| inner.parent.as_deref() == Some(name)) {
                    continue;
                }
                return Err(cannot_change(&if child == "image" {
                    option.clone()
                } else {
                    format!("{child}.driver")
                }));
            }
            let is_present_child = self
                .child(name, &[option.as_str()])
                .is_some_and(|child| value.as_str() == Some(child));
            if old.options.get(option) != Some(value) && !is_present_child {
                return Err(cannot_change(option));
            }
        }
        Ok(())
    }

    fn let_jobs_go_on(&mut self, paused: &[String]) {
        for job in paused {
            // It may have ended meanwhile.
            let _ = self.jobs.resume(job);
        }
    }

    /// Jobs stand still while their paths change; those that their user has
    /// paused do so already.
    async fn pause_running_jobs(&mut self) -> Result<Vec<String>, CommandError> {
        let running = self.jobs.iter().filter(|job| {
            job.kind().is_block_job() && job.status() == Status::Running && !job.is_paused()
        });
        let running: Vec<String> = running.map(|job| job.id().to_owned()).collect();
        let deadline_ns = self.shard.now_ns() + STILL_NS;
        let mut paused = Vec::new();
        for job in running {
            if self.pause_job(&job).await.is_err() {
                continue;
            }
            paused.push(job.clone());
            // Its requests in flight end first.
            while self
                .jobs
                .get(&job)
                .is_some_and(|job| job.status() == Status::Running && job.is_paused())
            {
                if self.shard.now_ns() > deadline_ns {
                    self.let_jobs_go_on(&paused);
                    return Err(generic(format!(
                        "Job '{job}' does not stand still: a request of it does not end"
                    )));
                }
                self.wait_for_job(&job).await;
            }
        }
        Ok(paused)
    }

    /// What queries show from now on; nodes that nobody has any more go.
    async fn learn_options(&mut self, queue: Vec<Queued>, list: &[Reopening]) {
        let mut gone = Vec::new();
        for (queued, reopening) in queue.into_iter().zip(list) {
            let settings = self.settings_of(&queued.name, &queued.node);
            let Some(opened) = self.nodes.get_mut(&queued.name) else {
                continue;
            };
            opened.settings = settings;
            let mut options = queued.node.given().clone();
            if queued.is_inner
                && let Some(name) = opened.options.get("node-name")
            {
                options.insert("node-name".into(), name.clone());
            }
            opened.options = options;
            let name = reopening.node.as_str();
            let left = self.nodes.iter().filter(|(child, inner)| {
                inner.parent.as_deref() == Some(name) && !self.graph.is_child(name, child)
            });
            gone.extend(left.map(|(child, _)| child.clone()));
        }
        for name in gone {
            // The last error was told by who closed it.
            let _ = self.close(&name).await;
        }
        self.rename_images();
    }

    /// An image is called by what is below it.
    fn rename_images(&mut self) {
        let mut done: BTreeMap<String, ImageName> = BTreeMap::new();
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in &names {
            self.name_of(name, &mut done);
        }
        for (name, image) in done {
            if let Some(opened) = self.nodes.get_mut(&name) {
                opened.name = image;
            }
        }
    }

    /// The recursion ends: there are no cycles.
    fn name_of(&self, name: &str, done: &mut BTreeMap<String, ImageName>) -> Option<ImageName> {
        if let Some(known) = done.get(name) {
            return Some(known.clone());
        }
        let opened = self.nodes.get(name)?;
        let mut children = Vec::new();
        for (edge, child) in self.graph.children(name) {
            let is_named = match edge {
                "file" | "image" => true,
                "backing" => opened.options.contains_key("backing"),
                _ => false,
            };
            if is_named {
                children.push((edge, self.name_of(child, done)));
            }
        }
        let is_without_backing = opened.options.get("backing").is_some_and(Value::is_null);
        if is_without_backing {
            children.push(("backing", None));
        }
        let children: Vec<_> = children
            .iter()
            .map(|(edge, name)| (*edge, name.as_ref()))
            .collect();
        let image = ImageName::new(opened.driver, &opened.options, &children);
        done.insert(name.to_owned(), image.clone());
        Some(image)
    }
}

fn not_found(name: &str) -> CommandError {
    generic(format!("Failed to find node with node-name='{name}'"))
}

fn cannot_change(option: &str) -> CommandError {
    generic(format!("Cannot change the option '{option}'"))
}

fn check_driver(name: &str, old: &Opened) -> Result<(), CommandError> {
    let driver = old.driver;
    if matches!(
        driver,
        "copy-before-write" | "snapshot-access" | "copy-on-read"
    ) {
        return Err(generic(format!(
            "Block format '{driver}' used by node '{name}' does not support reopening files"
        )));
    }
    Ok(())
}

/// What was given and cannot go back to its default must be given again.
fn check_resets(old: &Opened, new: &Map<String, Value>) -> Result<(), CommandError> {
    let lost = old.options.keys().find(|option| {
        let stays = is_common(option)
            || can_change(old.driver, option)
            || option.as_str() == "force-share"
            || CHILDREN.contains(&option.as_str())
            || child_of(option).is_some();
        !stays && !new.contains_key(*option)
    });
    match lost {
        None => Ok(()),
        Some(option) => Err(generic(format!(
            "Option '{option}' cannot be reset to its default value"
        ))),
    }
}

/// A qcow2 image's own options, of those that can change.
fn own_options(given: &Map<String, Value>) -> BTreeMap<&String, &Value> {
    let own = given
        .iter()
        .filter(|(option, _)| can_change("qcow2", option));
    own.collect()
}

fn image_facts(old: &Opened) -> ImageFacts {
    let header = old.header.as_ref();
    ImageFacts {
        cluster_size: header.map_or(65536, |header| 1 << header.cluster_bits),
        version: header.map_or(3, |header| header.version),
        has_data_file: header.is_some_and(|header| header.has_data_file()),
    }
}
