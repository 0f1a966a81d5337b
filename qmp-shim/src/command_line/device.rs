//! `--device` and `device_add`: what a guest sees, as QEMU's `-device`.
//!
//! There is no schema of devices. What every one may have is read here; the other members are
//! kept for whoever makes the device.

use serde_json::{Map, Value};

use super::error::{ArgumentError, Result};
use crate::error::OptionError;
use crate::keyval::{self, Options};
use crate::opts::{self, check_id};
use crate::visit::{Leaves, Reader};

/// A device to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its model.
    pub model: Model,
    /// Its name.
    pub id: Option<String>,
    /// The drive or node behind it.
    pub drive: Option<String>,
    /// The bus it is on.
    pub bus: Option<String>,
    /// Whether others may write to the same node.
    pub share_rw: bool,
    /// Whether the guest may take the disk out, if that is said.
    pub removable: Option<bool>,
    /// All other members. From a text they are strings.
    pub properties: Map<String, Value>,
}

/// A model, by the name that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A disk on a bus that it needs.
    Disk,
    /// A disk that can be taken out.
    Removable,
    /// A disk that brings its controller along.
    DiskAndController,
    /// What disks are connected to.
    Controller,
}

const MODELS: &[(&str, Kind)] = &[
    ("virtio-blk", Kind::Disk),
    ("virtio-blk-pci", Kind::Disk),
    ("virtio-blk-pci-non-transitional", Kind::Disk),
    ("virtio-blk-pci-transitional", Kind::Disk),
    ("virtio-blk-ccw", Kind::Disk),
    ("virtio-blk-device", Kind::Disk),
    ("scsi-hd", Kind::Disk),
    ("scsi-cd", Kind::Removable),
    ("ide-hd", Kind::Disk),
    ("ide-cd", Kind::Removable),
    ("floppy", Kind::Removable),
    ("usb-storage", Kind::DiskAndController),
    ("nvme", Kind::DiskAndController),
    ("nvme-ns", Kind::Disk),
    ("virtio-scsi", Kind::Controller),
    ("virtio-scsi-pci", Kind::Controller),
    ("virtio-scsi-pci-non-transitional", Kind::Controller),
    ("virtio-scsi-pci-transitional", Kind::Controller),
    ("virtio-scsi-ccw", Kind::Controller),
    ("virtio-scsi-device", Kind::Controller),
    ("megasas", Kind::Controller),
    ("megasas-gen2", Kind::Controller),
    ("mptsas1068", Kind::Controller),
    ("lsi", Kind::Controller),
    ("lsi53c810", Kind::Controller),
    ("lsi53c895a", Kind::Controller),
    ("am53c974", Kind::Controller),
    ("pvscsi", Kind::Controller),
    ("ahci", Kind::Controller),
    ("ich9-ahci", Kind::Controller),
    ("piix3-ide", Kind::Controller),
    ("piix4-ide", Kind::Controller),
    ("isa-fdc", Kind::Controller),
    ("nvme-subsys", Kind::Controller),
    ("pcie-root-port", Kind::Controller),
    ("pcie-pci-bridge", Kind::Controller),
    ("pci-bridge", Kind::Controller),
];

/// Disks of QEMU's that hand commands through to a device of the host, and others that need
/// more than a node.
const UNSUPPORTED: &[&str] = &[
    "ide-cf",
    "scsi-block",
    "scsi-generic",
    "sd-card",
    "ufs",
    "usb-bot",
    "usb-uas",
    "vhost-scsi-pci",
    "vhost-user-blk",
    "vhost-user-blk-pci",
    "vhost-user-scsi-pci",
    "virtio-pmem",
];

impl Model {
    /// The model of that name.
    ///
    /// # Errors
    ///
    /// When there is none, or only QEMU has it.
    pub fn from_name(name: &str) -> Result<Self> {
        if let Some(&(name, kind)) = MODELS.iter().find(|(known, _)| *known == name) {
            return Ok(Self { name, kind });
        }
        let model = name.to_owned();
        if !UNSUPPORTED.contains(&name) {
            return Err(ArgumentError::UnknownModel { model });
        }
        let disks = MODELS.iter().filter(|(_, kind)| *kind != Kind::Controller);
        let supported: Vec<_> = disks.map(|(name, _)| *name).collect();
        let supported = supported.join(", ");
        Err(ArgumentError::UnsupportedModel { model, supported })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }
}

impl Device {
    /// Reads and checks the argument, in either form. Warnings are added for short forms.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Self> {
        if text.starts_with('{') {
            let options = keyval::parse(text, None)?;
            let (Options::Text(members) | Options::Typed(members)) = options;
            return Self::from_arguments(&members);
        }
        let opts = opts::parse_implied(text, Some("driver"))?;
        warnings.extend(opts.warnings);
        Self::read(&opts.options, Leaves::Text)
    }

    /// Reads and checks the arguments of `device_add`.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn from_arguments(arguments: &Map<String, Value>) -> Result<Self> {
        Self::read(arguments, Leaves::Typed)
    }

    fn read(members: &Map<String, Value>, leaves: Leaves) -> Result<Self> {
        const READ: &[&str] = &["driver", "id", "drive", "bus", "share-rw", "removable"];
        let mut reader = Reader::new(members, leaves);
        // QEMU looks for a string, and for nothing else.
        let is_string = members.get("driver").is_none_or(Value::is_string);
        let driver = if is_string {
            reader.text("driver")?
        } else {
            None
        };
        let driver = driver.ok_or_else(|| OptionError::Missing {
            path: "driver".to_owned(),
        })?;
        let bus = reader.text("bus")?;
        let id = reader.text("id")?;
        if let Some(id) = &id {
            check_id(id)?;
        }
        let model = Model::from_name(&driver)?;
        let drive = reader.text("drive")?;
        let share_rw = reader.boolean("share-rw")?.unwrap_or(false);
        let removable = reader.boolean("removable")?;
        let others = members
            .iter()
            .filter(|(key, _)| !READ.contains(&key.as_str()));
        Ok(Self {
            model,
            id,
            drive,
            bus,
            share_rw,
            removable,
            properties: others
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }

    /// Whether it shows a drive or node to the guest.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        self.model.kind != Kind::Controller
    }

    /// Whether other devices are connected to it, or it needs no other to be.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        matches!(self.model.kind, Kind::Controller | Kind::DiskAndController)
    }

    /// Whether the guest may take the disk out; such a device may be empty.
    #[must_use]
    pub fn is_removable(&self) -> bool {
        self.model.kind == Kind::Removable || self.removable == Some(true)
    }

    /// Refuses members that nobody has asked for. To be told the names of all that are known.
    ///
    /// # Errors
    ///
    /// [`ArgumentError::UnknownProperty`] for the first of the others.
    pub fn check_properties(&self, known: &[&str]) -> Result<()> {
        match self
            .properties
            .keys()
            .find(|key| !known.contains(&key.as_str()))
        {
            None => Ok(()),
            Some(key) => Err(ArgumentError::UnknownProperty {
                model: self.model.name,
                key: key.clone(),
            }),
        }
    }
}
