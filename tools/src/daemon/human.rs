//! `human-monitor-command`: commands for people, which test suites use to make a
//! disk read and write.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;

use ringback_block::graph::{Graph, GraphError, UserId};
use ringback_block::port::Attachment;
use ringback_block::request::Preallocation;
use ringback_qmp_shim::command::BlockResize;
use ringback_ring::Shard;

use super::Reply;
use super::control::Control;
use crate::io::disk::{Disk, Node};
use crate::io::hmp::{self, Line};
use crate::io::monitor::{Owner, Requests, reply};
use crate::open::reason;

/// A user that stays as long as requests of a command go on.
pub(super) struct Lodger {
    user: UserId,
    requests: Rc<Requests>,
}

/// Lends the graph to a command that changes a disk's size.
struct Lender {
    shard: Shard,
    node: String,
    /// None while it is changed.
    graph: RefCell<Option<Graph>>,
}

impl Owner for Lender {
    fn resize(
        &self,
        size: u64,
        mode: Preallocation,
    ) -> Pin<Box<dyn Future<Output = Result<(), GraphError>> + '_>> {
        Box::pin(async move {
            let Some(mut graph) = self.graph.take() else {
                return Err(GraphError::InUse(self.node.clone()));
            };
            let result = graph.resize(&self.shard, &self.node, size, mode).await;
            *self.graph.borrow_mut() = Some(graph);
            result
        })
    }
}

/// What a name led to.
struct Found {
    node: String,
    /// Of a drive or device: its own requests.
    attachment: Option<Attachment>,
}

impl Control {
    pub(super) async fn human(&mut self, line: &str) -> Reply {
        let text = match hmp::parse(line) {
            Err(refusal) => {
                if let Some(said) = &refusal.said {
                    self.monitor_shell.say(said);
                }
                refusal.reply
            }
            Ok(Line::Empty) => String::new(),
            Ok(Line::Help(text)) => text,
            Ok(Line::QemuIo {
                by_device,
                name,
                command,
            }) => self.qemu_io(by_device, &name, &command).await,
            Ok(Line::InfoBlockJobs) => self.info_block_jobs(),
            Ok(Line::InfoBlock {
                nodes,
                verbose,
                name,
            }) => self.info_block(nodes, verbose, name.as_deref()).await,
            Ok(Line::BlockResize { name, size }) => self.resize_by_name(&name, size).await,
            Ok(Line::Commit { .. }) => reply("ringback does not implement 'commit'"),
        };
        Ok(text.into())
    }

    async fn resize_by_name(&mut self, name: &str, size: u64) -> String {
        let resize = BlockResize {
            device: Some(name.to_owned()),
            node_name: Some(name.to_owned()),
            size: i64::try_from(size).unwrap_or(i64::MAX),
        };
        match self.block_resize(&resize).await {
            Ok(_) => String::new(),
            Err(error) => reply(&format!("Error: {}", error.desc)),
        }
    }

    async fn qemu_io(&mut self, by_device: bool, name: &str, command: &str) -> String {
        let found = match self.find(by_device, name) {
            Ok(found) => found,
            Err(text) => return text,
        };
        let Some(call) = self.monitor_shell.look(command) else {
            return String::new();
        };
        let Some(opened) = self.nodes.get(&found.node) else {
            return String::new();
        };
        let access = call.access();
        if access.write && opened.settings.read_only {
            return reply("Block node is read-only");
        }
        let node = Node::new(&self.graph, opened);
        let (user, attachment) = match found.attachment {
            Some(attachment) => (None, attachment),
            None => {
                let label = "an unnamed block device";
                let attached = self.graph.attach(&self.shard, &found.node, label, access);
                match attached.await {
                    Ok((user, attachment)) => (Some(user), attachment),
                    Err(error) => return reply(&reason(error)),
                }
            }
        };
        let disk = Disk::new(&self.shard, attachment, node, false);
        let lender = Rc::new(Lender {
            shard: self.shard.clone(),
            node: found.node,
            graph: RefCell::new(Some(std::mem::take(&mut self.graph))),
        });
        let ended = self
            .monitor_shell
            .run(&call, disk, Rc::clone(&lender) as Rc<dyn Owner>)
            .await;
        self.graph = lender.graph.take().unwrap_or_default();
        if let Some(user) = user {
            let requests = ended.requests;
            self.lodgers.push(Lodger { user, requests });
            self.part_from_lodgers().await;
        }
        ended.reply
    }

    /// Ends the use of whoever has nothing left to do.
    pub(super) async fn part_from_lodgers(&mut self) {
        let all = std::mem::take(&mut self.lodgers);
        for lodger in all {
            if lodger.requests.is_idle() {
                self.graph.detach(lodger.user).await;
            } else {
                self.lodgers.push(lodger);
            }
        }
    }

    /// Errors are the text of a reply.
    fn find(&self, by_device: bool, name: &str) -> Result<Found, String> {
        if let Some((node, attachment)) = self.attachment_of(name, by_device) {
            return Ok(Found {
                node,
                attachment: Some(attachment),
            });
        }
        if by_device {
            return Err(reply(&if self.has_device(name) {
                "Error: Device does not have a block device backend".to_owned()
            } else {
                format!("Error: Device '{name}' not found")
            }));
        }
        // The name of a drive, or else of a node.
        let found = match self.node_of_device(name) {
            Some(found) => found,
            None => self.find_node(None, Some(name)),
        };
        match found {
            Ok(node) => Ok(Found {
                node,
                attachment: None,
            }),
            Err(error) => Err(reply(&format!("Error: {}", error.desc))),
        }
    }

    fn info_block_jobs(&self) -> String {
        let mut text = String::new();
        for job in self.jobs.iter().filter(|job| job.kind().is_block_job()) {
            let progress = job.progress();
            text += &reply(&format!(
                "Type {}, device {}: Completed {} of {} bytes, speed limit {} bytes/s",
                job.kind().name(),
                job.id(),
                progress.offset,
                progress.len,
                job.speed()
            ));
        }
        if text.is_empty() {
            text = reply("No active jobs");
        }
        text
    }
}
