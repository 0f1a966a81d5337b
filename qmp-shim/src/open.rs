//! QEMU's older way of opening images: by a file name, by flat options, or by both.
//!
//! `qemu-io`, `qemu-img` and `-drive` know it. The driver may be missing: then the format is
//! found by looking at the image. Children may be missing: then the file name is the child.
//! All options are texts, and nodes that are not named are opened on the way:
//!
//! ```text
//! disk.qcow2                                 a format to be found, over the file
//! blkdebug:rules:disk.img                    a format to be found, over blkdebug over the file
//! json:{"driver":"qcow2","file.filename":"disk.qcow2"}
//! driver=qcow2,file.filename=disk.qcow2,backing.driver=raw       (--image-opts)
//! ```
//!
//! # What comes out
//!
//! A tree of [`OpenNode`]s. Most are [`DriverNode`]s, with the same options that
//! [`crate::blockdev`] reads. A [`Probe`] is a format that is yet to be found: the engine
//! opens its storage, looks at the first bytes, and tells [`Probe::resolve`] the driver's
//! name; only now the options of the format can be read. A backing file is known when the
//! image's header is: [`DriverNode::backing`].
//!
//! # What a node takes from its parent
//!
//! `read-only`, `auto-read-only`, `force-share`, `cache.direct` and `cache.no-flush`, where its
//! own options do not say otherwise; its `discard` is `unmap`. A backing file is read-only. The
//! outermost node takes them from the program ([`Settings`]).
//!
//! # Order of errors
//!
//! Errors are QEMU's. Where there are several, those which need no file come first here,
//! although QEMU may open one before it finds them: nothing is opened for a command that is
//! wrong.

use serde_json::{Map, Value};

use crate::blockdev::{
    Backing, BlockdevOptions, Child, Children, CommonOptions, Driver, DriverOptions, MAX_NESTED,
    Role, Settings, find_driver,
};
use crate::error::{OptionError, Result};
use crate::visit::{Leaves, Owner, Reader};

mod backing_name;
mod file_name;
mod flat;
mod image_name;
pub mod nbd_name;

pub use backing_name::{backing_name_at_creation, full_backing_name};
pub use flat::{MAX_OPTION_NAME, MAX_OPTIONS, flatten};
pub use image_name::ImageName;

use flat::{as_texts, check_bounds, nest};

/// A node to be opened.
#[derive(Debug, Clone, PartialEq)]
pub enum OpenNode {
    /// Its driver is known.
    Driver(DriverNode),
    /// Its format is to be found by looking at the image.
    Probe(Probe),
}

/// A node with its driver and options.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverNode {
    /// Options of every driver, as given.
    pub common: CommonOptions,
    /// What they amount to.
    pub settings: Settings,
    /// The driver and its own options. What they say of a backing file is a reference or
    /// null; options of one are kept until the image's header is known.
    pub driver: DriverOptions<OpenNode>,
    /// The driver was chosen by the file name. If that is a device of the host, it is to be
    /// `host_device` and not `file`.
    pub by_file_name: bool,
    /// To be printed behind the program's name and `warning: `.
    pub warnings: Vec<String>,
    /// Own options as given, children's included: those of the image's name.
    given: Map<String, Value>,
    /// What is said of the backing file.
    backing: BackingSource,
    depth: usize,
}

/// A format that is to be found by looking at the image.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Where the image is.
    pub file: Child<OpenNode>,
    /// What the node's options amount to.
    pub settings: Settings,
    pending: Pending,
}

/// What an image's header says of its backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackingHeader<'a> {
    /// The name, as it is there; empty is none.
    pub file: &'a str,
    /// The format's name, if it is there.
    pub format: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq)]
enum BackingSource {
    /// Nobody shall look for one.
    None,
    /// The image says, and these options come on top.
    Image(Map<String, Value>),
    /// A node that exists.
    Node(String),
}

/// A node whose options are not read yet.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    given: Map<String, Value>,
    options: Map<String, Value>,
    inherited: Settings,
    no_backing: bool,
    by_file_name: bool,
    warnings: Vec<String>,
    depth: usize,
}

/// Where a node stands.
#[derive(Clone, Copy)]
struct Place {
    /// What it has if it says nothing.
    inherited: Settings,
    /// Without a driver it is a protocol, and no format is looked for.
    is_protocol: bool,
    depth: usize,
}

/// Opens an image by its file name, by options, or both.
///
/// `options` are flat, such as those of [`crate::opts::parse`]; leaves can be texts, numbers
/// and booleans. `defaults` is what the program says for the outermost node.
///
/// # Errors
///
/// See [`OptionError`].
///
/// ```
/// use ringback_qmp_shim::blockdev::Settings;
/// use ringback_qmp_shim::open::{OpenNode, open};
///
/// let node = open(Some("disk.qcow2"), &serde_json::Map::new(), &Settings::default()).unwrap();
/// let OpenNode::Probe(probe) = node else { panic!("no format was given") };
/// let image = probe.file.clone();
/// assert_eq!(probe.resolve("qcow2", image).unwrap().driver.name(), "qcow2");
/// ```
pub fn open(
    filename: Option<&str>,
    options: &Map<String, Value>,
    defaults: &Settings,
) -> Result<OpenNode> {
    check_bounds(options)?;
    let place = Place {
        inherited: *defaults,
        is_protocol: false,
        depth: 0,
    };
    open_node(filename, options.clone(), place)
}

fn open_node(
    filename: Option<&str>,
    mut options: Map<String, Value>,
    place: Place,
) -> Result<OpenNode> {
    if place.depth > MAX_NESTED {
        return Err(OptionError::NodesTooDeep { max: MAX_NESTED });
    }
    let filename = match filename.map(|name| file_name::split_json(name)) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(text)) => {
            let named = file_name::parse_json(text)?;
            for (key, value) in named {
                options.entry(key).or_insert(value);
            }
            None
        }
    };
    let given = options.clone();
    let mut pending = Pending {
        given,
        options: as_texts(options),
        inherited: place.inherited,
        no_backing: false,
        by_file_name: false,
        warnings: Vec::new(),
        depth: place.depth,
    };
    let driver = pending.choose_driver(filename, place.is_protocol)?;
    pending.look_for_null_backing();
    if let Some(driver) = driver
        && driver.is_protocol()
    {
        return pending.open(driver, None).map(OpenNode::Driver);
    }
    let common = pending.read_common()?;
    let settings = common.settle_above(&pending.inherited);
    let file = pending.open_file(filename, &settings)?;
    match (driver, file) {
        (Some(driver), file) => pending.open(driver, file).map(OpenNode::Driver),
        (None, None) => Err(OptionError::NoDriverOrFile),
        (None, Some(file)) => Ok(OpenNode::Probe(Probe {
            file,
            settings,
            pending,
        })),
    }
}

impl Probe {
    /// The node, now that its format is known. `file` is [`Probe::file`], or the name of the
    /// node which that has become.
    ///
    /// # Errors
    ///
    /// When the options do not fit the format, or there is no such one.
    pub fn resolve(self, format: &str, file: Child<OpenNode>) -> Result<DriverNode> {
        match find_driver(format)? {
            Some(driver) if !driver.is_protocol() => self.pending.open(driver, Some(file)),
            _ => Err(unknown_driver(format)),
        }
    }
}

impl DriverNode {
    /// The options as they were given, children's included, flat: what
    /// [`ImageName::new`] wants to know.
    #[must_use]
    pub fn given(&self) -> &Map<String, Value> {
        &self.given
    }

    /// Whether it is defined inside of another node.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.depth > 0
    }

    /// Whether options say something of the backing file, so that the image's header alone
    /// does not.
    #[must_use]
    pub fn overrides_backing(&self) -> bool {
        match &self.backing {
            BackingSource::None | BackingSource::Node(_) => true,
            BackingSource::Image(options) => !options.is_empty(),
        }
    }

    /// The backing file of an image with this header. `overlay` is where the image lies,
    /// as [`ImageName::base`] has it.
    ///
    /// # Errors
    ///
    /// See [`OptionError`]; those of the backing file's own options are
    /// [`OptionError::Backing`].
    pub fn backing(
        &self,
        header: BackingHeader<'_>,
        overlay: Option<&str>,
    ) -> Result<Option<Child<OpenNode>>> {
        let options = match &self.backing {
            BackingSource::None => return Ok(None),
            BackingSource::Node(name) => return Ok(Some(Child::Node(name.clone()))),
            BackingSource::Image(options) => options,
        };
        let filename = if options.contains_key("file.filename") {
            None
        } else if header.file.is_empty() && options.is_empty() {
            return Ok(None);
        } else {
            full_backing_name(overlay, header.file, self.driver.name())?
        };
        let mut options = options.clone();
        if let Some(format) = header.format.filter(|format| !format.is_empty())
            && !options.contains_key("driver")
        {
            options.insert("driver".to_owned(), Value::from(format));
        }
        let place = Place {
            inherited: self.settings.for_backing(),
            is_protocol: false,
            depth: self.depth + 1,
        };
        let node = open_node(filename.as_deref(), options, place)
            .map_err(|error| OptionError::Backing(Box::new(error)))?;
        Ok(Some(Child::Options(Box::new(node))))
    }
}

fn unknown_driver(name: &str) -> OptionError {
    OptionError::UnknownDriver {
        driver: name.to_owned(),
    }
}

impl Pending {
    fn text(&self, key: &str) -> Option<&str> {
        self.options.get(key).and_then(Value::as_str)
    }

    /// The driver, if options or file name give it away. For a protocol the file name becomes
    /// options.
    fn choose_driver(
        &mut self,
        filename: Option<&str>,
        is_protocol: bool,
    ) -> Result<Option<Driver>> {
        let given = match self.given.get("driver") {
            Some(Value::String(name)) => {
                Some(find_driver(name)?.ok_or_else(|| unknown_driver(name))?)
            }
            _ => None,
        };
        if !given.map_or(is_protocol, Driver::is_protocol) {
            return Ok(given);
        }
        let Some(filename) = filename else {
            // A name among the options is a path; no prefix has a meaning.
            if given.is_none() && self.text("filename").is_none() {
                return Err(OptionError::NoDriverOrFile);
            }
            self.by_file_name = given.is_none();
            return Ok(Some(given.unwrap_or(Driver::File)));
        };
        if self.options.contains_key("filename") {
            return Err(OptionError::FileNameTwice);
        }
        let driver = match given {
            Some(driver) => driver,
            None => {
                let protocol = file_name::find_protocol(filename)?;
                self.by_file_name = !file_name::has_protocol(filename);
                protocol
            }
        };
        if driver == Driver::Nbd {
            self.refuse_beside_name(&nbd_name::NAMED_OPTIONS)?;
        }
        for (key, value) in file_name::parse(driver, filename)? {
            self.given
                .insert(key.to_owned(), Value::from(value.clone()));
            self.options.insert(key.to_owned(), Value::from(value));
        }
        Ok(Some(driver))
    }

    /// Options that a file name gives cannot be given beside it.
    fn refuse_beside_name(&self, names: &[&str]) -> Result<()> {
        let is_one = |key: &&String| {
            let mut names = names.iter();
            names.any(|name| key == name || (name.ends_with('.') && key.starts_with(name)))
        };
        match self.options.keys().find(is_one) {
            None => Ok(()),
            Some(option) => Err(OptionError::NotWithFileName {
                option: option.clone(),
            }),
        }
    }

    /// `backing` as null, or as nothing.
    fn look_for_null_backing(&mut self) {
        match self.options.get("backing") {
            Some(Value::Null) => {}
            Some(Value::String(name)) if name.is_empty() => self.warnings.push(
                "Use of \"backing\": \"\" is deprecated; use \"backing\": null instead".to_owned(),
            ),
            _ => return,
        }
        self.options.shift_remove("backing");
        self.no_backing = true;
    }

    /// The options that every driver has. What nobody knows is for the driver's own reader to
    /// refuse, which says whose it is.
    fn read_common(&self) -> Result<CommonOptions> {
        let is_known = |key: &str| {
            matches!(key, "cache.direct" | "cache.no-flush") || !key.starts_with("cache.")
        };
        let known = self.options.iter().filter(|(key, _)| is_known(key));
        let known = known
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        CommonOptions::read(&mut Reader::flat(&known, Owner::Nobody))
    }

    /// The child `file` of a node that is no protocol, if there is one.
    fn open_file(
        &self,
        filename: Option<&str>,
        settings: &Settings,
    ) -> Result<Option<Child<OpenNode>>> {
        let mut reader = Reader::flat(&self.options, Owner::Nobody);
        let place = Place {
            inherited: CommonOptions::default().settle(Some(settings)),
            is_protocol: true,
            depth: self.depth + 1,
        };
        open_child(&mut reader, "file", filename, place, &self.given)
    }

    /// Reads the options of a node whose driver is known.
    fn open(self, driver: Driver, file: Option<Child<OpenNode>>) -> Result<DriverNode> {
        let name = driver.name();
        let owner = match driver {
            // This driver reads its options as the newer interface does.
            Driver::CopyBeforeWrite => Owner::Nobody,
            _ if driver.is_protocol() => Owner::Protocol(name),
            _ => Owner::Format(name),
        };
        let mut reader = Reader::flat(&self.options, owner);
        reader.text("driver")?;
        let common = CommonOptions::read(&mut reader)?;
        let settings = common.settle_above(&self.inherited);
        if settings.force_share && !settings.read_only {
            return Err(OptionError::ForceShareNeedsReadOnly);
        }
        if driver.needs_file_name() && self.text("filename").is_none_or(str::is_empty) {
            return Err(OptionError::NoFileName { driver: name });
        }
        common.check(&settings)?;
        let mut children = FlatChildren {
            file,
            settings,
            driver,
            depth: self.depth,
            no_backing: self.no_backing,
            given: &self.given,
            backing: Map::new(),
        };
        let options = DriverOptions::read(driver, &mut reader, &mut children)?;
        options.check(&settings)?;
        let backing = self.backing_source(driver, &options, children.backing)?;
        reader.finish()?;
        Ok(DriverNode {
            common,
            settings,
            driver: options,
            by_file_name: self.by_file_name,
            warnings: self.warnings,
            given: self.given,
            backing,
            depth: self.depth,
        })
    }

    fn backing_source(
        &self,
        driver: Driver,
        options: &DriverOptions<OpenNode>,
        inside: Map<String, Value>,
    ) -> Result<BackingSource> {
        if self.no_backing {
            return Ok(BackingSource::None);
        }
        if let DriverOptions::Qcow2(qcow2) = options {
            return Ok(match &qcow2.backing {
                Some(Backing::Child(Child::Node(name))) => BackingSource::Node(name.clone()),
                _ => BackingSource::Image(inside),
            });
        }
        // With the newer interface's readers these are options that nobody knows.
        let mut reader = Reader::flat(&self.options, Owner::Nobody);
        let said = reader.flat_child("backing");
        if driver != Driver::CopyBeforeWrite
            && !(said.reference.is_none() && said.options.is_empty())
        {
            return Err(OptionError::NoBackingFiles);
        }
        Ok(BackingSource::Image(Map::new()))
    }
}

/// Children in the older interface: options, a file name, or a reference.
struct FlatChildren<'a> {
    /// The child `file`, which is opened before its parent's options are read.
    file: Option<Child<OpenNode>>,
    settings: Settings,
    driver: Driver,
    depth: usize,
    no_backing: bool,
    /// Options of the parent as they were given, children's included.
    given: &'a Map<String, Value>,
    /// Options of the backing file, until somebody asks for it.
    backing: Map<String, Value>,
}

impl FlatChildren<'_> {
    fn place(&self) -> Place {
        Place {
            inherited: CommonOptions::default().settle(Some(&self.settings)),
            is_protocol: true,
            depth: self.depth + 1,
        }
    }
}

impl Children for FlatChildren<'_> {
    type Node = OpenNode;

    fn optional(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        role: Role,
    ) -> Result<Option<Child<OpenNode>>> {
        if name == "file" {
            reader.flat_child(name);
            return Ok(self.file.take());
        }
        if role == Role::Data {
            return open_strict_child(reader, name, self.place(), self.given);
        }
        let filename = match name {
            "image" => reader.text("x-image")?,
            _ => None,
        };
        open_child(reader, name, filename.as_deref(), self.place(), self.given)
    }

    fn required(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
        role: Role,
    ) -> Result<Child<OpenNode>> {
        self.optional(reader, name, role)?.ok_or_else(|| {
            if self.driver == Driver::CopyBeforeWrite {
                OptionError::Missing {
                    path: name.to_owned(),
                }
            } else {
                OptionError::NoChild { child: name }
            }
        })
    }

    fn backing(&mut self, reader: &mut Reader<'_>) -> Result<Option<Backing<OpenNode>>> {
        if self.no_backing {
            return Ok(Some(Backing::None));
        }
        let said = reader.flat_child("backing");
        match said.reference {
            Some(Value::String(_)) if !said.options.is_empty() => Err(OptionError::Backing(
                Box::new(OptionError::ReferenceWithOptions),
            )),
            Some(Value::String(node)) => Ok(Some(Backing::Child(Child::Node(node)))),
            _ => {
                self.backing = as_given(said.options, self.given, "backing");
                Ok(None)
            }
        }
    }
}

/// A child's options with the numbers and booleans that its parent was given: names
/// of files show them as such.
fn as_given(
    mut options: Map<String, Value>,
    given: &Map<String, Value>,
    child: &str,
) -> Map<String, Value> {
    for (key, value) in &mut options {
        if let Some(typed) = given.get(&format!("{child}.{key}")) {
            *value = typed.clone();
        }
    }
    options
}

/// A child by reference, by options, or by file name; none of them is none.
fn open_child(
    reader: &mut Reader<'_>,
    name: &'static str,
    filename: Option<&str>,
    place: Place,
    given: &Map<String, Value>,
) -> Result<Option<Child<OpenNode>>> {
    let said = reader.flat_child(name);
    match said.reference {
        Some(Value::String(_)) if filename.is_some() || !said.options.is_empty() => {
            Err(OptionError::ReferenceWithOptions)
        }
        Some(Value::String(node)) => Ok(Some(Child::Node(node))),
        _ if filename.is_none() && said.options.is_empty() => Ok(None),
        _ => {
            let options = as_given(said.options, given, name);
            let node = open_node(filename, options, place)?;
            Ok(Some(Child::Options(Box::new(node))))
        }
    }
}

/// A child of a driver that reads its options as the newer interface does: drivers must be
/// named, and no name is looked for.
fn open_strict_child(
    reader: &mut Reader<'_>,
    name: &'static str,
    place: Place,
    given: &Map<String, Value>,
) -> Result<Option<Child<OpenNode>>> {
    let said = reader.flat_child(name);
    match said.reference {
        Some(Value::String(node)) => return Ok(Some(Child::Node(node))),
        _ if said.options.is_empty() => return Ok(None),
        _ => {}
    }
    let tree = nest(&said.options)?;
    let strict = Reader::inside(&tree, Leaves::Text, format!("{name}."));
    BlockdevOptions::read_nested(strict, place.depth)?;
    let options = as_given(said.options, given, name);
    let node = open_node(None, options, place)?;
    Ok(Some(Child::Options(Box::new(node))))
}

#[cfg(test)]
mod tests;
