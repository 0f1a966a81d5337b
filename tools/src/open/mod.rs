//! Opening images: from options or a file name to nodes of the graph, bottom
//! first, down through backing chains.
//!
//! What the options mean is known to `ringback_qmp_shim::open`; what an image
//! is made of, to the engine. Here the two meet: a format is found by looking at
//! the image, a backing file by asking the image for its name.

mod claimed;
mod create;
mod credentials;
mod describe;
mod drivers;
mod image;
mod nbd;
mod objects;
mod overlay;
mod probe;
mod secure_name;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;

use ringback_block::format::qcow2::header::{Header, OpenMode};
use ringback_block::graph::{Graph, GraphError, NodeSpec, Place, Qcow2Spec};
use ringback_block::notice::{Notice, Notify};
use ringback_qmp_shim::blockdev::qcow2::ImageFacts;
use ringback_qmp_shim::blockdev::{
    CbwOptions, Child, DetectZeroes, DriverOptions, FileOptions, RawOptions, Settings,
};
use ringback_qmp_shim::open::{BackingHeader, DriverNode, ImageName, OpenNode};
use ringback_ring::Shard;
use serde_json::{Map, Value};

pub(crate) use claimed::is_claimed;
pub(crate) use create::{create_file, preallocation, qcow2_create_options};
pub(crate) use credentials::{TlsCreds, advice};
pub(crate) use describe::{describe, describe_qcow2};
pub(crate) use drivers::{
    cbw_timeout_ns, limits, on_cbw_error, policy, qcow2 as qcow2_options, reason,
};
pub(crate) use image::{NewImage, check_format, make_image};
pub(crate) use nbd::Servers;
pub(crate) use objects::Objects;
pub(crate) use overlay::overlay;
pub(crate) use probe::{HEAD_BYTES, format as probed_format};
pub(crate) use secure_name::QemuName;

/// A node that has been opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    /// Its name in the graph.
    pub(crate) node: String,
    /// Its driver.
    pub(crate) driver: &'static str,
    /// What QEMU would call the image.
    pub(crate) name: ImageName,
    /// Nobody said which format it has.
    pub(crate) was_probed: bool,
    pub(crate) settings: Settings,
    /// Of a qcow2 image, as it was when it was opened.
    pub(crate) header: Option<Header>,
    /// Its options as they were given, flat.
    pub(crate) options: Map<String, Value>,
    /// The node inside of whose options it was defined.
    pub(crate) parent: Option<String>,
}

/// Opens nodes of one graph.
pub(crate) struct Opener<'a> {
    shard: &'a Shard,
    graph: &'a mut Graph,
    notify: Notify,
    servers: Servers<'a>,
    /// Everything that can be referred to, by node.
    known: &'a mut BTreeMap<String, Opened>,
    /// In the order of opening.
    nodes: Vec<String>,
    warnings: Vec<String>,
    /// A person reads what it says: that a format which may be written was only
    /// guessed, and what may help after an error.
    is_for_people: bool,
    /// Of the backing file opened last, which is the topmost image's.
    backing_driver: Option<&'static str>,
}

/// What an opener has made: the node, everything below it, and what to say.
pub(crate) struct Chain {
    pub(crate) top: Opened,
    /// Every node that was made, in the order of opening.
    pub(crate) nodes: Vec<String>,
    /// The driver of the topmost image's backing file.
    pub(crate) backing_driver: Option<&'static str>,
    /// To be printed behind the program's name and `warning: `.
    pub(crate) warnings: Vec<String>,
}

type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + 'a>>;

/// Opens a tree of nodes. `known` has the nodes that can be referred to, and gets
/// those that are made.
///
/// # Errors
///
/// The reason, in QEMU's words where it has some; everything that was opened on
/// the way is closed again.
pub(crate) async fn open(
    shard: &Shard,
    graph: &mut Graph,
    notify: Notify,
    node: OpenNode,
    is_for_people: bool,
    servers: Servers<'_>,
    known: &mut BTreeMap<String, Opened>,
) -> Result<Chain, String> {
    let mut opener = Opener {
        shard,
        graph,
        notify,
        servers,
        known,
        nodes: Vec::new(),
        warnings: Vec::new(),
        is_for_people,
        backing_driver: None,
    };
    match opener.open_node(node).await {
        Ok(top) => Ok(Chain {
            top,
            nodes: opener.nodes,
            backing_driver: opener.backing_driver,
            warnings: opener.warnings,
        }),
        Err(error) => {
            let nodes = std::mem::take(&mut opener.nodes);
            for node in &nodes {
                opener.known.remove(node);
            }
            // The first error counts.
            let _ = close(shard, graph, &nodes).await;
            Err(error)
        }
    }
}

/// Closes nodes that were opened in this order.
///
/// # Errors
///
/// The first node that could not be written; the others are closed all the same.
pub(crate) async fn close(
    shard: &Shard,
    graph: &mut Graph,
    nodes: &[String],
) -> Result<(), GraphError> {
    let mut result = Ok(());
    let mut rest: Vec<&String> = nodes.iter().rev().collect();
    loop {
        let mut in_use = Vec::new();
        for &node in &rest {
            match graph.remove(shard, node).await {
                Err(GraphError::InUse(_)) => in_use.push(node),
                closed => result = result.and(closed),
            }
        }
        // A backing file goes once its overlay has gone.
        if in_use.is_empty() || in_use.len() == rest.len() {
            return result;
        }
        rest = in_use;
    }
}

impl Opener<'_> {
    fn open_node(&mut self, node: OpenNode) -> Opening<'_, Opened> {
        Box::pin(async move {
            match node {
                OpenNode::Driver(driver) => self.open_driver(driver, false).await,
                OpenNode::Probe(probe) => {
                    let file = self.open_child(probe.file.clone()).await?;
                    let head = self
                        .graph
                        .peek(self.shard, &file.node, HEAD_BYTES)
                        .await
                        .map_err(|error| error.to_string())?;
                    let format = probed_format(&head).unwrap_or("raw");
                    if format == "raw" && !probe.settings.read_only {
                        self.tell_of_guess(&file);
                    }
                    let driver = probe
                        .resolve(format, Child::Node(file.node))
                        .map_err(|error| error.to_string())?;
                    self.open_driver(driver, format == "raw").await
                }
            }
        })
    }

    /// A guest could make a raw image look like another format, whose header could
    /// name any file as its backing file.
    fn tell_of_guess(&self, file: &Opened) {
        if !self.is_for_people {
            return;
        }
        let name = &file.name;
        let text = format!(
            "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on \
             block 0 will be restricted.\n         Specify the 'raw' format explicitly to remove \
             the restrictions."
        );
        self.notify.send(Notice::Message(text));
    }

    async fn open_child(&mut self, child: Child<OpenNode>) -> Result<Opened, String> {
        match child {
            Child::Options(node) => self.open_node(*node).await,
            Child::Node(name) => self
                .known
                .get(&name)
                .cloned()
                .ok_or_else(|| format!("Cannot find device='{name}' nor node-name='{name}'")),
        }
    }

    async fn add(&mut self, spec: NodeSpec, name: Option<&str>) -> Result<String, String> {
        let added = match name {
            Some(name) => {
                let added = self.graph.add(self.shard, name, spec).await;
                added.map(|()| name.to_owned())
            }
            None => self.graph.add_unnamed(self.shard, spec).await,
        };
        let node = added.map_err(|error| match self.is_for_people {
            true => drivers::reason_with_hint(error),
            false => drivers::reason(error),
        })?;
        self.nodes.push(node.clone());
        Ok(node)
    }

    async fn open_driver(&mut self, node: DriverNode, was_probed: bool) -> Result<Opened, String> {
        self.warnings.extend(node.warnings.iter().cloned());
        let (driver, mut settings) = (node.driver.name(), node.settings);
        let name = node.common.node_name.as_deref();
        let image = |children: &[(&str, Option<&ImageName>)]| {
            ImageName::new(driver, node.given(), children)
        };
        let mut header = None;
        let (added, image_name) = match &node.driver {
            DriverOptions::File(file) | DriverOptions::HostDevice(file) => {
                (self.add_file(file, &mut settings, name).await?, image(&[]))
            }
            DriverOptions::NullCo(null) => {
                (self.add(drivers::null(*null), name).await?, image(&[]))
            }
            DriverOptions::Nbd(nbd) => {
                let added = self
                    .add(nbd::nbd(nbd, &settings, self.servers)?, name)
                    .await?;
                let export = self.graph.export(&added);
                settings.read_only |= export.is_some_and(|export| !export.is_writable());
                (added, image(&[]))
            }
            DriverOptions::Raw(raw) => {
                let file = self.open_child(raw.file.clone()).await?;
                let spec = raw_spec(raw, &file);
                let added = self.add(spec, name).await?;
                (added, image(&[("file", Some(&file.name))]))
            }
            DriverOptions::Blkdebug(blkdebug) => {
                // In QEMU it is older than the node that it opens below itself.
                let place = self.graph.keep_place();
                let child = self.open_child(blkdebug.image.clone()).await?;
                let spec = drivers::blkdebug(blkdebug, &child)?;
                let added = self.add(spec, name).await?;
                self.graph.set_place(&added, place);
                (added, image(&[("image", Some(&child.name))]))
            }
            DriverOptions::Throttle(throttle) => {
                let child = self.open_child(throttle.file.clone()).await?;
                let spec = NodeSpec::Throttle {
                    file: child.node.clone(),
                    group: throttle.throttle_group.clone(),
                };
                let added = self.add(spec, name).await?;
                (added, image(&[("file", Some(&child.name))]))
            }
            DriverOptions::CopyOnRead(filter) => {
                if filter.bottom.is_some() {
                    return Err("copy-on-read: option 'bottom' is not supported yet".into());
                }
                let child = self.open_child(filter.file.clone()).await?;
                let file = child.node.clone();
                let added = self.add(NodeSpec::CopyOnRead { file }, name).await?;
                (added, image(&[("file", Some(&child.name))]))
            }
            DriverOptions::CopyBeforeWrite(filter) => {
                let (spec, file, place) = self.copy_before_write(filter).await?;
                let added = self.add(spec, name).await?;
                self.graph.set_place(&added, place);
                (added, image(&[("file", Some(&file.name))]))
            }
            DriverOptions::SnapshotAccess(access) => {
                let child = self.open_child(access.file.clone()).await?;
                let file = child.node.clone();
                let added = self.add(NodeSpec::SnapshotAccess { file }, name).await?;
                (added, image(&[("file", Some(&child.name))]))
            }
            DriverOptions::Qcow2(_) => {
                let (added, name, found) = self.open_qcow2(&node).await?;
                header = Some(found);
                (added, name)
            }
        };
        let opened = Opened {
            node: added.clone(),
            driver,
            name: image_name,
            was_probed,
            settings,
            header,
            options: node.given().clone(),
            parent: None,
        };
        let policy = drivers::policy(driver, &settings);
        self.graph
            .set_policy(&added, policy)
            .map_err(drivers::reason)?;
        self.adopt(&added, &node);
        self.known.insert(added, opened.clone());
        Ok(opened)
    }

    /// With `auto-read-only` a file that the kernel does not let be written is
    /// opened read-only.
    async fn add_file(
        &mut self,
        file: &FileOptions,
        settings: &mut Settings,
        name: Option<&str>,
    ) -> Result<String, String> {
        let spec = drivers::file(file, settings)?;
        if settings.auto_read_only && !settings.read_only {
            let path = PathBuf::from(&file.filename);
            settings.read_only = !drivers::is_writable(self.shard, path).await;
            let spec = drivers::file(file, settings)?;
            return self.add(spec, name).await;
        }
        self.add(spec, name).await
    }

    /// Children that were not given by name are this node's own.
    fn adopt(&mut self, parent: &str, node: &DriverNode) {
        let own = self.graph.children(parent).into_iter();
        let own = own.filter(|(edge, child)| {
            node.given().get(*edge).and_then(Value::as_str) != Some(*child)
        });
        let own: Vec<String> = own.map(|(_, child)| child.to_owned()).collect();
        for child in own {
            if let Some(opened) = self.known.get_mut(&child) {
                opened.parent = Some(parent.to_owned());
            }
        }
    }

    async fn copy_before_write(
        &mut self,
        options: &CbwOptions<OpenNode>,
    ) -> Result<(NodeSpec, Opened, Place), String> {
        let file = self.open_child(options.file.clone()).await?;
        // In QEMU it is older than its target.
        let place = self.graph.keep_place();
        let target = self.open_child(options.target.clone()).await?;
        let bitmap = options
            .bitmap
            .as_ref()
            .map(|bitmap| (bitmap.node.clone(), bitmap.name.clone()));
        let spec = NodeSpec::CopyBeforeWrite {
            file: file.node.clone(),
            target: target.node,
            bitmap,
            options: drivers::copy_before_write(options),
        };
        Ok((spec, file, place))
    }

    /// The image first, without its backing file: its locks are taken before
    /// anything else is looked for.
    async fn open_qcow2(
        &mut self,
        node: &DriverNode,
    ) -> Result<(String, ImageName, Header), String> {
        let DriverOptions::Qcow2(options) = &node.driver else {
            unreachable!("asked for qcow2 nodes only");
        };
        let settings = node.settings;
        let file = self.open_child(options.file.clone()).await?;
        let overlay = file.name.base().map(str::to_owned);
        let mode = if settings.read_only {
            OpenMode::ReadOnly
        } else {
            OpenMode::ReadWrite
        };
        let header = self
            .graph
            .qcow2_header(self.shard, &file.node, mode)
            .await
            .map_err(|error| error.to_string())?;
        // In QEMU it is older than its data file.
        let place = self.graph.keep_place();
        let data_file = match &options.data_file {
            Some(child) => Some(self.open_child(child.clone()).await?.node),
            None if header.has_data_file() => {
                let name = header.extensions.data_file.as_deref();
                Some(self.open_data_file(name, node).await?)
            }
            None => None,
        };
        let facts = ImageFacts {
            cluster_size: 1 << header.cluster_bits,
            version: header.version,
            has_data_file: header.has_data_file(),
        };
        let spec = Qcow2Spec {
            file: file.node.clone(),
            backing: None,
            data_file,
            options: drivers::qcow2(options, &settings, facts, self.notify.clone())?,
            force_share: settings.force_share,
        };
        let added = self
            .add(NodeSpec::Qcow2(spec), node.common.node_name.as_deref())
            .await?;
        self.graph.set_place(&added, place);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let backing_file = header.backing_file.as_deref().map(text).unwrap_or_default();
        let backing_header = BackingHeader {
            file: &backing_file,
            format: header.extensions.backing_format.as_deref(),
        };
        let backing = node
            .backing(backing_header, overlay.as_deref())
            .map_err(|error| error.to_string())?;
        let backing = match backing {
            Some(child) => {
                let opened = self
                    .open_child(child)
                    .await
                    .map_err(|error| format!("Could not open backing file: {error}"))?;
                self.graph
                    .set_backing(&added, Some(&opened.node))
                    .await
                    .map_err(|error| {
                        format!("Could not open backing file: {}", drivers::reason(error))
                    })?;
                self.backing_driver = Some(opened.driver);
                Some(opened)
            }
            None => None,
        };
        let mut children = vec![("file", Some(&file.name))];
        if node.overrides_backing() {
            children.push(("backing", backing.as_ref().map(|backing| &backing.name)));
        }
        let name = ImageName::new(node.driver.name(), node.given(), &children);
        Ok((added, name, header))
    }

    /// The data file whose name the image knows.
    async fn open_data_file(
        &mut self,
        name: Option<&[u8]>,
        node: &DriverNode,
    ) -> Result<String, String> {
        // Unlike a backing file's name it is not relative to the image.
        let name = name.ok_or("'data-file' is required for this image")?;
        let name = String::from_utf8_lossy(name);
        let path = name.strip_prefix("file:").unwrap_or(&name);
        let added = self
            .add(drivers::file_at(path, &node.settings), None)
            .await?;
        let mut given = Map::new();
        given.insert("filename".to_owned(), path.into());
        let opened = Opened {
            node: added.clone(),
            driver: "file",
            name: ImageName::new("file", &given, &[]),
            was_probed: false,
            settings: Settings {
                detect_zeroes: DetectZeroes::Off,
                ..node.settings
            },
            header: None,
            options: given,
            parent: None,
        };
        self.known.insert(added.clone(), opened);
        Ok(added)
    }
}

fn raw_spec(raw: &RawOptions<OpenNode>, file: &Opened) -> NodeSpec {
    NodeSpec::Raw {
        file: file.node.clone(),
        offset: raw.offset.unwrap_or(0),
        size: raw.size,
    }
}
