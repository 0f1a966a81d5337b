//! Disks as management tools address them: block backends (`--drive`) and the
//! virtual devices that they are attached to (`--device`). No guest is behind
//! them; what counts is that they have names, hold nodes, and can be moved from
//! one node to another.

mod media;

use ringback_block::graph::{Access, UserId};
use ringback_block::port::Attachment;
use ringback_block::usage::Usage;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::drive::Interface;
use ringback_qmp_shim::command_line::{Device, Drive};
use ringback_qmp_shim::event::Event;
use serde_json::{Value, json};

use super::Reply;
use super::control::Control;
use crate::open::reason;

/// Where devices are that nobody has named.
const ANONYMOUS: &str = "/machine/peripheral-anon/";

/// Properties of devices which only a guest would notice. There is none.
const FOR_GUESTS: &[&str] = &[
    "addr",
    "bootindex",
    "channel",
    "config-wce",
    "device_id",
    "disable-legacy",
    "disable-modern",
    "discard_granularity",
    "iothread",
    "logical_block_size",
    "lun",
    "max_sectors",
    "min_io_size",
    "multifunction",
    "num-queues",
    "num_queues",
    "opt_io_size",
    "physical_block_size",
    "product",
    "queue-size",
    "rerror",
    "scsi-id",
    "serial",
    "vendor",
    "ver",
    "werror",
    "write-cache",
    "wwn",
];

/// A hold on a node.
struct Hold {
    user: UserId,
    attachment: Attachment,
}

/// A disk with a name, a device, or both.
pub(super) struct Backend {
    /// Name of the drive; empty if it came with a device.
    name: String,
    device: Option<Device>,
    hold: Option<Hold>,
    tray_open: bool,
    /// What was asked of it before it had the node that it has.
    pub(super) past: Usage,
}

impl Backend {
    fn new(name: &str, device: Option<&Device>) -> Self {
        Self {
            name: name.to_owned(),
            device: device.cloned(),
            hold: None,
            tray_open: false,
            past: Usage::default(),
        }
    }

    /// Name of the drive; empty if it came with a device.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The device's name, as queries show it.
    pub(super) fn qdev(&self) -> Option<String> {
        self.device.as_ref().map(qdev)
    }

    /// As the graph shows it.
    pub(super) fn title(&self) -> String {
        match self.qdev() {
            Some(qdev) if self.name.is_empty() => qdev,
            _ => self.name.clone(),
        }
    }

    /// Its device.
    pub(super) fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Its use of a node.
    pub(super) fn user(&self) -> Option<UserId> {
        self.hold.as_ref().map(|hold| hold.user)
    }

    /// The way to its node.
    pub(super) fn attachment(&self) -> Option<&Attachment> {
        self.hold.as_ref().map(|hold| &hold.attachment)
    }

    /// As `query-block` shows it, without what is in it.
    pub(super) fn entry(&self) -> Value {
        let mut entry = json!({
            "device": self.name,
            "locked": false,
            "removable": self.is_removable(),
            "type": "unknown",
        });
        if let Some(device) = &self.device {
            entry["qdev"] = qdev(device).into();
            entry["io-status"] = "ok".into();
            if device.is_removable() {
                entry["tray_open"] = self.tray_open.into();
            }
        }
        entry
    }

    /// As it is called in messages.
    fn label(&self) -> String {
        match &self.device {
            _ if !self.name.is_empty() => format!("block device '{}'", self.name),
            Some(device) => format!("block device '{}'", qdev(device)),
            None => "an unnamed block device".into(),
        }
    }

    fn is_anonymous(&self) -> bool {
        let id = self.device.as_ref().and_then(|device| device.id.as_deref());
        id.is_some_and(|id| id.starts_with(ANONYMOUS))
    }

    fn is_removable(&self) -> bool {
        self.device.as_ref().is_none_or(Device::is_removable)
    }
}

/// The name under which a device's disk is known: of a virtio disk an inner
/// part of it.
fn qdev(device: &Device) -> String {
    let id = device.id.clone().unwrap_or_default();
    if id.starts_with(ANONYMOUS) {
        return format!("{id}/virtio-backend");
    }
    if device.model.name().starts_with("virtio-blk") {
        format!("/machine/peripheral/{id}/virtio-backend")
    } else {
        id
    }
}

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

impl Control {
    pub(super) async fn add_drive(&mut self, drive: &Drive) -> Result<(), CommandError> {
        let device = self.device_of_drive(drive)?;
        let name = match &drive.id {
            Some(id) => id.clone(),
            None if device.is_some() => format!("virtio{}", self.anonymous_count()),
            None => return Err(generic("a drive without a device needs an id")),
        };
        if self.backends.iter().any(|backend| backend.name == name) {
            return Err(generic(format!("Duplicate ID '{name}' for drive")));
        }
        let unsupported = [
            ("snapshot", drive.snapshot),
            ("copy-on-read", drive.copy_on_read),
            ("throttling", drive.throttle.is_some()),
            ("cache=writethrough", drive.writethrough),
        ];
        if let Some((option, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            return Err(generic(format!(
                "option '{option}' of a drive is not supported here"
            )));
        }
        let opened = drive.open()?;
        let node = match opened {
            Some(node) => Some(self.open(node).await?),
            None => None,
        };
        let mut backend = Backend::new(&name, device.as_ref());
        if let Some(node) = node {
            match self.hold(&backend, &node).await {
                Ok(hold) => backend.hold = Some(hold),
                Err(error) => {
                    self.close(&node).await;
                    return Err(error);
                }
            }
        }
        self.backends.push(backend);
        Ok(())
    }

    /// The device that a drive brings along, which nobody has named.
    fn device_of_drive(&self, drive: &Drive) -> Result<Option<Device>, CommandError> {
        if matches!(drive.interface, Interface::None | Interface::Default) {
            return Ok(None);
        }
        let mut warnings = Vec::new();
        let mut device = Device::parse("virtio-blk", &mut warnings)
            .map_err(|error| generic(error.to_string()))?;
        device.id = Some(self.anonymous_id());
        Ok(Some(device))
    }

    /// Where the next device is that nobody has named.
    fn anonymous_id(&self) -> String {
        format!("{ANONYMOUS}device[{}]", self.anonymous_count())
    }

    fn anonymous_count(&self) -> usize {
        let anonymous = self
            .backends
            .iter()
            .filter(|backend| backend.is_anonymous());
        anonymous.count()
    }

    /// Lets a backend use a node. Only what a device is in front of writes, where
    /// the node can be written.
    async fn hold(&mut self, backend: &Backend, node: &str) -> Result<Hold, CommandError> {
        let is_read_only = self
            .nodes
            .get(node)
            .is_some_and(|opened| opened.settings.read_only);
        let access = Access {
            read: true,
            write: backend.device.is_some() && !is_read_only,
            alone_writing: backend
                .device
                .as_ref()
                .is_some_and(|device| !device.share_rw),
            ..Access::default()
        };
        let label = backend.label();
        let held = self
            .graph
            .attach(&self.shard, node, &label, access)
            .await
            .map_err(|error| generic(reason(error)))?;
        let (user, attachment) = held;
        attachment.continue_usage(&self.shard, &backend.past).await;
        Ok(Hold { user, attachment })
    }

    pub(super) async fn device_add(&mut self, device: &Device) -> Reply {
        self.add_device(device).await?;
        Ok(json!({}))
    }

    pub(super) async fn add_device(&mut self, device: &Device) -> Result<(), CommandError> {
        if let Some(id) = &device.id
            && (self.find_device(id).is_some() || self.controllers.contains(id))
        {
            return Err(generic(format!("Duplicate device ID '{id}'")));
        }
        device.check_properties(FOR_GUESTS)?;
        let mut device = device.clone();
        if device.is_disk() && device.id.is_none() {
            device.id = Some(self.anonymous_id());
        }
        let device = &device;
        if !device.is_disk() {
            // Nothing is behind a controller, but devices may name it as their bus.
            self.controllers.extend(device.id.clone());
            return Ok(());
        }
        let Some(drive) = &device.drive else {
            if !device.is_removable() {
                return Err(generic("drive property not set"));
            }
            self.backends.push(Backend::new("", Some(device)));
            return Ok(());
        };
        if let Some(backend) = self
            .backends
            .iter_mut()
            .find(|backend| backend.name == *drive)
        {
            if backend.device.is_some() {
                return Err(generic(format!(
                    "Drive '{drive}' is already in use by another device"
                )));
            }
            backend.device = Some(device.clone());
            return self.take_hold_anew(drive).await;
        }
        if !self.graph.contains(drive) {
            return Err(generic(format!(
                "Property '{}.drive' can't find value '{drive}'",
                device.model.name()
            )));
        }
        let mut backend = Backend::new("", Some(device));
        backend.hold = Some(self.hold(&backend, drive).await?);
        self.backends.push(backend);
        Ok(())
    }

    /// A drive has got a device, or lost it: it does something else with its node.
    async fn take_hold_anew(&mut self, drive: &str) -> Result<(), CommandError> {
        let found = self
            .backends
            .iter()
            .position(|backend| backend.name == drive);
        let Some(index) = found else {
            return Ok(());
        };
        let mut backend = self.backends.remove(index);
        let mut result = Ok(());
        if let Some(old) = backend.hold.take()
            && let Some(node) = self.graph.node_of(old.user).map(str::to_owned)
        {
            backend.past = old.attachment.usage().await;
            self.graph.detach(old.user).await;
            match self.hold(&backend, &node).await {
                Ok(hold) => backend.hold = Some(hold),
                Err(error) => {
                    backend.device = None;
                    backend.hold = self.hold(&backend, &node).await.ok();
                    result = Err(error);
                }
            }
        }
        self.backends.insert(index, backend);
        result
    }

    pub(super) async fn device_del(&mut self, id: &str) -> Reply {
        if let Some(index) = self.find_device(id) {
            if let Some(hold) = self.backends.remove(index).hold {
                self.let_go(hold).await;
            }
        } else if let Some(index) = self.controllers.iter().position(|other| other == id) {
            self.controllers.remove(index);
        } else {
            return Err(CommandError::device_not_found(id));
        }
        self.tell(&Event::DeviceDeleted {
            device: Some(id.to_owned()),
            path: format!("/machine/peripheral/{id}"),
        });
        Ok(json!({}))
    }

    /// Ends a hold; a node that nobody else keeps goes.
    async fn let_go(&mut self, hold: Hold) {
        self.let_user_go(hold.user).await;
    }

    /// Ends a use; a node that nobody else keeps goes.
    pub(super) async fn let_user_go(&mut self, user: UserId) {
        let node = self.graph.node_of(user).map(str::to_owned);
        self.graph.detach(user).await;
        if let Some(node) = node {
            self.close(&node).await;
        }
    }

    /// By id, or by the path of the device or of its inner part.
    fn find_device(&self, name: &str) -> Option<usize> {
        let name = name.strip_prefix("/machine/peripheral/").unwrap_or(name);
        let name = name.strip_suffix("/virtio-backend").unwrap_or(name);
        self.backends.iter().position(|backend| {
            let id = backend
                .device
                .as_ref()
                .and_then(|device| device.id.as_deref());
            id == Some(name)
        })
    }

    /// The node of a named backend, if there is one of this name.
    pub(super) fn node_of_device(&self, name: &str) -> Option<Result<String, CommandError>> {
        let mut backends = self.backends.iter();
        let backend = backends.find(|backend| !name.is_empty() && backend.name == name)?;
        let node = backend
            .hold
            .as_ref()
            .and_then(|hold| self.graph.node_of(hold.user));
        Some(
            node.map(str::to_owned)
                .ok_or_else(|| generic(format!("Device '{name}' has no medium"))),
        )
    }

    /// The hold of a backend, by its name or, with `is_device`, its device's.
    pub(super) fn attachment_of(
        &self,
        name: &str,
        is_device: bool,
    ) -> Option<(String, Attachment)> {
        let backend = if is_device {
            self.find_device(name).map(|index| &self.backends[index])
        } else {
            self.backends
                .iter()
                .find(|backend| !name.is_empty() && backend.name == name)
        };
        // A drive alone holds no right to write: see `hold`.
        let hold = backend
            .filter(|backend| backend.device.is_some())?
            .hold
            .as_ref()?;
        let node = self.graph.node_of(hold.user)?.to_owned();
        Some((node, hold.attachment.clone()))
    }

    /// Whether there is a device of this name.
    pub(super) fn has_device(&self, name: &str) -> bool {
        self.find_device(name).is_some()
    }

    pub(super) fn device_get(&self, path: &str, property: &str) -> Reply {
        let Some(index) = self.find_device(path) else {
            return Err(CommandError::device_not_found(path));
        };
        let backend = &self.backends[index];
        match property {
            "type" => Ok(backend
                .device()
                .map_or("", |device| device.model.name())
                .into()),
            "drive" if !backend.name.is_empty() => Ok(backend.name.clone().into()),
            "drive" => {
                let node = backend
                    .hold
                    .as_ref()
                    .and_then(|hold| self.graph.node_of(hold.user));
                Ok(node.unwrap_or_default().into())
            }
            _ => Err(no_property(backend, property)),
        }
    }

    /// Moves a device to another node, while its requests wait.
    pub(super) async fn device_set(&mut self, path: &str, property: &str, value: &Value) -> Reply {
        let Some(index) = self.find_device(path) else {
            return Err(CommandError::device_not_found(path));
        };
        if property != "drive" {
            return Err(no_property(&self.backends[index], property));
        }
        let Some(node) = value.as_str() else {
            return Err(generic(
                "Invalid parameter type for 'drive', expected: string",
            ));
        };
        if !self.graph.contains(node) {
            return Err(generic(format!(
                "Cannot find device='' nor node-name='{node}'"
            )));
        }
        let Some(hold) = &self.backends[index].hold else {
            let hold = self.hold_for(index, node).await?;
            self.backends[index].hold = Some(hold);
            return Ok(json!({}));
        };
        let user = hold.user;
        let old = self.graph.node_of(user).map(str::to_owned);
        let moved = self.graph.move_user(user, node).await;
        moved.map_err(|error| generic(reason(error)))?;
        if let Some(old) = old {
            self.close(&old).await;
        }
        Ok(json!({}))
    }

    async fn hold_for(&mut self, index: usize, node: &str) -> Result<Hold, CommandError> {
        let backend = &self.backends[index];
        let mut placeholder = Backend::new(&backend.name, backend.device());
        placeholder.past = backend.past.clone();
        self.hold(&placeholder, node).await
    }

    /// Those with a name, then the others.
    pub(super) fn ordered_backends(&self) -> impl Iterator<Item = &Backend> {
        let is_named = |backend: &&Backend| !backend.name.is_empty();
        let named = self.backends.iter().filter(is_named);
        let unnamed = self
            .backends
            .iter()
            .filter(move |backend| !is_named(backend));
        named.chain(unnamed)
    }

    pub(super) fn node_of_backend(&self, backend: &Backend) -> Option<&str> {
        self.graph.node_of(backend.user()?)
    }

    /// The disk of a device: of a virtio disk by the name of its inner part only.
    pub(super) fn find_disk(&self, name: &str) -> Result<usize, CommandError> {
        let index = self
            .find_device(name)
            .ok_or_else(|| CommandError::device_not_found(name))?;
        let own = self.backends[index].qdev().unwrap_or_default();
        if own.ends_with("/virtio-backend") && !name.ends_with("/virtio-backend") {
            return Err(generic("Device does not have a block device backend"));
        }
        Ok(index)
    }
}

fn no_property(backend: &Backend, property: &str) -> CommandError {
    let model = backend
        .device
        .as_ref()
        .map_or("device", |device| device.model.name());
    generic(format!("Property '{model}.{property}' not found"))
}
