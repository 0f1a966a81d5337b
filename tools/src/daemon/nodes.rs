//! The commands that make and remove nodes, and images for them.

use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::graph::GraphError;
use ringback_block::job::Kind;
use ringback_block::request::Preallocation;
use ringback_qmp_shim::BlockdevOptions;
use ringback_qmp_shim::blockdev::{Child, Settings};
use ringback_qmp_shim::command::{
    BlockResize, BlockdevCreate, BlockdevCreateOptions, BlockdevCreateOptionsFile,
    BlockdevCreateOptionsQcow2,
};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::open::{self as names, flatten};
use ringback_ring::Shard;
use serde_json::{Value, json};

use super::Reply;
use super::control::{AsyncLater, Control};
use super::inbox::Message;
use crate::open::{self, reason};

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

/// What is to be opened, from the options of a node.
fn node_of(options: &BlockdevOptions) -> Result<names::OpenNode, CommandError> {
    let tree = serde_json::to_value(options).map_err(|error| generic(error.to_string()))?;
    let Value::Object(tree) = tree else {
        return Err(generic("the options of a node are an object"));
    };
    let flat = flatten(&tree)?;
    Ok(names::open(None, &flat, &Settings::default())?)
}

impl Control {
    pub(super) async fn blockdev_add(&mut self, options: &BlockdevOptions) -> Reply {
        options.check()?;
        let node = node_of(options)?;
        let name = self.open(node).await?;
        self.graph.set_owned(&name, true);
        Ok(json!({}))
    }

    /// Opens a node and everything below it.
    pub(super) async fn open(&mut self, node: names::OpenNode) -> Result<String, CommandError> {
        let notify = self.notify();
        let objects = &self.objects;
        let find_credentials = |id: &str| {
            let found = objects.client_credentials(id);
            found.map_err(|error| error.to_string())
        };
        let chain = open::open(
            &self.shard,
            &mut self.graph,
            notify,
            node,
            false,
            open::Servers {
                find_credentials: &find_credentials,
                bitmap: None,
            },
            &mut self.nodes,
        )
        .await
        .map_err(generic)?;
        for warning in &chain.warnings {
            tracing::warn!("{warning}");
        }
        Ok(chain.top.node)
    }

    pub(super) async fn blockdev_del(&mut self, name: &str) -> Reply {
        if !self.graph.contains(name) {
            return Err(generic(format!(
                "Failed to find node with node-name='{name}'"
            )));
        }
        let busy = |why: &str| generic(format!("Node '{name}' is busy: {why}"));
        match self.jobs.using(name) {
            // Whoever uses the disk uses it through the job's filter.
            Some(("main node", _)) if self.graph.has_users(name) => {
                return Err(generic(format!("Node {name} is in use")));
            }
            Some(("source", _)) => {
                return Err(generic(format!("Block device {name} is in use")));
            }
            Some((_, kind)) => {
                let kind = kind.name();
                return Err(busy(&format!(
                    "block device is in use by block job: {kind}"
                )));
            }
            None => {}
        }
        if self.graph.has_users(name) {
            return Err(generic(format!("Node {name} is in use")));
        }
        let parents = self.graph.parents(name);
        if let Some((overlay, _)) = parents.iter().find(|(_, edge)| *edge == "backing") {
            return Err(busy(&format!("node is used as backing hd of '{overlay}'")));
        }
        if !self.graph.is_owned(name) {
            return Err(generic(format!("Node {name} is not owned by the monitor")));
        }
        if !parents.is_empty() {
            return Err(generic(format!("Block device {name} is in use")));
        }
        self.graph.set_owned(name, false);
        self.close(name).await;
        Ok(json!({}))
    }

    /// Closes a node that nobody has any more, and what is below it. The nodes are
    /// gone whatever happens, as in QEMU; what was lost is told in the log.
    pub(super) async fn close(&mut self, name: &str) {
        if let Err(error) = self.graph.release(&self.shard, name).await {
            tracing::error!("{}", reason(error));
        }
        self.unused_files_are_closed().await;
        self.forget_gone_nodes();
    }

    /// Whoever unmounts a file system or deletes a device as soon as he has his answer
    /// must not find it busy.
    pub(super) async fn unused_files_are_closed(&self) {
        self.shard.set().catch_up().await;
    }

    /// At the end: every image is written and closed.
    pub(super) async fn close_all_nodes(&mut self) {
        self.stop_exports().await;
        self.graph.detach_all().await;
        let names: Vec<String> = self.graph.names().map(str::to_owned).collect();
        for name in &names {
            self.graph.set_owned(name, false);
        }
        for name in names.iter().rev() {
            if self.graph.contains(name)
                && let Err(error) = self.graph.release(&self.shard, name).await
            {
                tracing::error!("{}", reason(error));
            }
        }
        self.nodes.clear();
    }

    pub(super) async fn block_resize(&mut self, resize: &BlockResize) -> Reply {
        let device = resize.device.as_deref();
        let name = self.find_node(device, resize.node_name.as_deref())?;
        let size = u64::try_from(resize.size)
            .map_err(|_| generic("Parameter 'size' expects a >0 size"))?;
        if let Some((role, kind)) = self.jobs.using(&name)
            && role == "target"
        {
            let kind = kind.name();
            return Err(generic(format!(
                "Node '{name}' is busy: block device is in use by block job: {kind}"
            )));
        }
        let resized = self
            .graph
            .resize(&self.shard, &name, size, Preallocation::Off)
            .await;
        resized.map_err(|error| generic(reason(error)))?;
        Ok(json!({}))
    }

    /// A node by the name of a device or its own.
    pub(super) fn find_node(
        &self,
        device: Option<&str>,
        node: Option<&str>,
    ) -> Result<String, CommandError> {
        if let Some(found) = device.and_then(|device| self.node_of_device(device)) {
            return found;
        }
        if let Some(found) = node.filter(|node| self.graph.contains(node)) {
            return Ok(found.to_owned());
        }
        let (device, node) = (device.unwrap_or_default(), node.unwrap_or_default());
        Err(generic(format!(
            "Cannot find device='{device}' nor node-name='{node}'"
        )))
    }

    /// Answers at once; the image is made behind the answer, as a job.
    pub(super) fn blockdev_create(&mut self, create: BlockdevCreate) -> Reply {
        if let BlockdevCreateOptions::Other { driver } = &create.options {
            return Err(generic(cannot_create(driver)));
        }
        self.jobs
            .begin_task(&create.job_id, Kind::Create)
            .map_err(|refusal| generic(refusal.to_string()))?;
        self.later.push(Box::new(Creation(create)));
        Ok(json!({}))
    }

    /// Beside everything else: it may take long to reserve a file's space.
    fn create_file(&self, job: String, options: BlockdevCreateOptionsFile) {
        let (shard, address) = (self.shard.clone(), self.address.clone());
        self.shard.spawn(async move {
            let result = make_file(&shard, &options).await;
            address.send(Message::Created { job, result });
        });
    }

    async fn create_qcow2(&mut self, options: &BlockdevCreateOptionsQcow2) -> Result<(), String> {
        let mut opened = Vec::new();
        let mut result = self.create_qcow2_in(options, &mut opened).await;
        for node in &opened {
            // What was made may reach the file only now.
            let closed = self.graph.release(&self.shard, node).await;
            result = result.and(closed.map_err(reason));
        }
        self.forget_gone_nodes();
        result
    }

    async fn create_qcow2_in(
        &mut self,
        options: &BlockdevCreateOptionsQcow2,
        opened: &mut Vec<String>,
    ) -> Result<(), String> {
        let file = self.child_node(&options.file, opened).await?;
        let data_file = match &options.data_file {
            Some(child) => Some(self.child_node(child, opened).await?),
            None => None,
        };
        let data_name = data_file.as_ref().map(|name| {
            let opened = self.nodes.get(name);
            opened
                .map(|opened| opened.name.to_string())
                .unwrap_or_default()
        });
        let create = open::qcow2_create_options(options, data_name);
        self.make_qcow2(&file, data_file.as_deref(), &create).await
    }

    /// A node by its name, or one that is opened for this alone.
    async fn child_node(
        &mut self,
        child: &Child,
        opened: &mut Vec<String>,
    ) -> Result<String, String> {
        let options = match child {
            Child::Node(name) => {
                let found = self.find_node(Some(name), Some(name));
                return found.map_err(|error| error.desc);
            }
            Child::Options(options) => options,
        };
        let node = node_of(options).map_err(|error| error.desc)?;
        let name = self.open(node).await.map_err(|error| error.desc)?;
        opened.push(name.clone());
        Ok(name)
    }

    async fn make_qcow2(
        &mut self,
        file: &str,
        data_file: Option<&str>,
        create: &CreateOptions,
    ) -> Result<(), String> {
        self.graph
            .create_qcow2(&self.shard, file, data_file, create)
            .await
            .map_err(|error: GraphError| reason(error))
    }
}

fn cannot_create(driver: &str) -> String {
    format!("Driver '{driver}' does not support image creation")
}

async fn make_file(shard: &Shard, options: &BlockdevCreateOptionsFile) -> Result<(), String> {
    // Hints for file systems that ringback does not give, as if the file system did
    // not take them.
    if options
        .extent_size_hint
        .is_some_and(|hint| hint > u64::from(u32::MAX))
    {
        return Err("Extent size hint is too large".into());
    }
    let preallocation = open::preallocation(options.preallocation);
    open::create_file(shard, &options.filename, options.size, preallocation).await
}

/// The work of a job that makes an image.
struct Creation(BlockdevCreate);

impl AsyncLater for Creation {
    fn run<'a>(
        self: Box<Self>,
        control: &'a mut Control,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            let BlockdevCreate { job_id, options } = self.0;
            let result = match options {
                BlockdevCreateOptions::File(file) => {
                    control.create_file(job_id, file);
                    return;
                }
                BlockdevCreateOptions::Qcow2(qcow2) => control.create_qcow2(&qcow2).await,
                BlockdevCreateOptions::Other { driver } => Err(cannot_create(driver)),
            };
            let shard = control.shard.clone();
            control
                .jobs
                .end_task(&shard, &mut control.graph, &job_id, result)
                .await;
        })
    }
}
