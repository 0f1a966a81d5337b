//! Where the backup goes: made, overwritten, or gone on with.

use std::path::{Path, PathBuf};

use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::graph::{Access, Graph, NodeSpec};
use ringback_block::request::Preallocation;
use ringback_ring::Shard;
use ringback_ring::file::Cache;
use serde_json::{Map, Value};

use super::args::{Args, Format};
use super::open::{Disk, Wanted};
use super::place::{Identity, Place, is_same, reason};
use super::state::{TargetDescription, directory_of, sync_directory};
use crate::open::{
    HEAD_BYTES, Objects, create_file, is_claimed, probed_format, reason as graph_reason,
};

/// The previous backup, as the header of the next one names it.
#[derive(Clone, Debug)]
pub(crate) struct Backing {
    path: PathBuf,
    pub(crate) name: String,
    format: &'static str,
}

impl Backing {
    /// Finds it: beside the target it is named without its directory, so that
    /// both can be moved together.
    ///
    /// # Errors
    ///
    /// It is not there, or of no format that can be one.
    pub(crate) fn find(args: &Args, target: &Place) -> Result<Option<Self>, String> {
        let Some(given) = &args.backing else {
            return Ok(None);
        };
        let fail = |why: &str| Err(format!("--backing '{given}': {why}"));
        let path = match Place::of(given)? {
            Place::File(path) | Place::Device(path) => path,
            Place::Missing(_) => return fail("no such file or directory"),
            Place::Elsewhere => return fail("the previous backup must be a file or a device"),
        };
        let full = match path.canonicalize() {
            Ok(full) => full,
            Err(error) => return fail(&reason(&error)),
        };
        let (Place::Missing(overlay) | Place::File(overlay)) = target else {
            return fail("the target of an incremental backup must be a file");
        };
        if is_same(&path, overlay) {
            return fail("it is the target, too");
        }
        let beside = directory_of(overlay).canonicalize().ok();
        let is_beside = full.parent().map(Path::to_owned) == beside;
        let name = match full.file_name() {
            Some(name) if is_beside => Path::new(name),
            _ => full.as_path(),
        };
        let Some(name) = name.to_str() else {
            return fail("its name is not UTF-8");
        };
        let format = match args.backing_format {
            Some(format) => format.name(),
            None => match look(&path) {
                Ok(None) => "raw",
                Ok(Some("qcow2")) => "qcow2",
                Ok(Some(other)) => return fail(&format!("it is of format {other}")),
                Err(error) => return fail(&reason(&error)),
            },
        };
        Ok(Some(Self {
            // A colon would make a protocol of what stands before it.
            name: if name.contains(':') && !name.starts_with('/') {
                format!("./{name}")
            } else {
                name.into()
            },
            path,
            format,
        }))
    }
}

fn look(path: &Path) -> std::io::Result<Option<&'static str>> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(probed_format(&head))
}

/// A target to be opened.
pub(crate) struct Plan<'a> {
    pub(crate) args: &'a Args,
    pub(crate) objects: &'a Objects,
    pub(crate) place: Place,
    pub(crate) size: u64,
    pub(crate) backing: Option<Backing>,
}

impl Plan<'_> {
    fn name(&self) -> &str {
        &self.args.target
    }

    fn format(&self) -> Format {
        self.args.target_format()
    }

    /// Nothing that is read may be written to.
    ///
    /// # Errors
    ///
    /// The target is part of the source, or of the previous backup.
    pub(crate) fn check_apart(&self, source_files: &[PathBuf]) -> Result<(), String> {
        let (Place::File(path) | Place::Device(path)) = &self.place else {
            return Ok(());
        };
        if source_files.iter().any(|file| is_same(file, path)) {
            return Err(format!(
                "the target '{}' is the source, or a part of it",
                self.name()
            ));
        }
        match &self.backing {
            Some(backing) if is_same(&backing.path, path) => Err(format!(
                "the target '{}' is the previous backup",
                self.name()
            )),
            _ => Ok(()),
        }
    }

    /// Makes it anew; what was there is lost.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn make(&mut self, shard: &Shard, graph: &mut Graph) -> Result<(), String> {
        let format = self.format();
        if matches!(self.place, Place::File(_)) {
            self.check_alone(shard, graph).await?;
        }
        match (self.place.clone(), format) {
            (Place::Missing(path) | Place::File(path), _) => {
                let text = path.to_str().ok_or("the target's name is not UTF-8")?;
                let size = match format {
                    Format::Raw => self.size,
                    Format::Qcow2 => 0,
                };
                create_file(shard, text, size, Preallocation::Off)
                    .await
                    .map_err(|error| self.wrong(&error))?;
                if format == Format::Qcow2 {
                    self.make_qcow2(shard, graph, &path).await?;
                }
                let directory = directory_of(&path);
                shard
                    .blocking(move || sync_directory(&directory))
                    .await
                    .map_err(|error| self.wrong(&reason(&error)))?;
                self.place = Place::File(path);
                Ok(())
            }
            (Place::Device(path), _) => {
                self.check_unclaimed(&path)?;
                match format {
                    Format::Raw => Ok(()),
                    Format::Qcow2 => self.make_qcow2(shard, graph, &path).await,
                }
            }
            (Place::Elsewhere, Format::Raw) => Ok(()),
            (Place::Elsewhere, Format::Qcow2) => {
                Err(self.wrong("a qcow2 image can only be made in a file or on a device"))
            }
        }
    }

    async fn make_qcow2(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        path: &Path,
    ) -> Result<(), String> {
        let spec = NodeSpec::File {
            path: path.to_owned(),
            write: true,
            cache: Cache::Buffered,
            discard: true,
        };
        let wrong = |error| self.wrong(&graph_reason(error));
        let file = graph.add_unnamed(shard, spec).await.map_err(wrong)?;
        let mut options = CreateOptions::new(self.size);
        if let Some(backing) = &self.backing {
            options.backing_file = Some(backing.name.clone());
            options.backing_format = Some(backing.format.to_owned());
        }
        let made = graph.create_qcow2(shard, &file, None, &options).await;
        let closed = graph.remove(shard, &file).await;
        made.and(closed).map_err(wrong)
    }

    /// Opens it for writing.
    ///
    /// # Errors
    ///
    /// The reason; nothing is open then.
    pub(crate) async fn open(&self, shard: &Shard, graph: &mut Graph) -> Result<Disk, String> {
        let disk = self.open_window(shard, graph, None).await?;
        // By whatever name it was given, and also where a backup goes on.
        for path in disk.paths(graph) {
            self.check_unclaimed(&path)?;
        }
        if self.args.update && self.args.target_format.is_none() && self.format() == Format::Raw {
            self.check_raw(shard, graph, &disk).await?;
        }
        let size = graph.size(disk.node()).map_err(|error| error.to_string())?;
        if size < self.size || (size > self.size && self.format() == Format::Qcow2) {
            return Err(self.wrong(&format!("it has {size} bytes and the source {}", self.size)));
        }
        if size == self.size {
            return Ok(disk);
        }
        if self.args.update && matches!(self.place, Place::File(_)) {
            // As large as its source when it was made.
            return Err(self.wrong(&format!(
                "it has {size} bytes and the source {}: it is not the previous backup",
                self.size
            )));
        }
        // Of a longer device only the beginning is the backup.
        graph.detach(disk.user).await;
        crate::open::close(shard, graph, &disk.chain.nodes)
            .await
            .map_err(|error| self.wrong(&graph_reason(error)))?;
        self.open_window(shard, graph, Some(self.size)).await
    }

    /// What is in the previous backup is not to be destroyed by a wrong format.
    async fn check_raw(&self, shard: &Shard, graph: &Graph, disk: &Disk) -> Result<(), String> {
        let head = graph.peek(shard, disk.node(), HEAD_BYTES).await;
        let head = head.map_err(|error| error.to_string())?;
        match probed_format(&head) {
            None => Ok(()),
            Some(format) => Err(self.wrong(&format!(
                "it begins as an image of format {format} does; say with -F raw or -F qcow2 what \
                 it is"
            ))),
        }
    }

    async fn open_window(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        size: Option<u64>,
    ) -> Result<Disk, String> {
        let mut options = Map::new();
        // Such a name says itself what it is.
        if !self.name().starts_with("json:") {
            options.insert("driver".into(), Value::from(self.format().name()));
        }
        if let Some(size) = size {
            options.insert("size".into(), Value::from(size.to_string()));
        }
        self.wanted(options).open(shard, graph).await
    }

    fn wanted(&self, options: Map<String, Value>) -> Wanted<'_> {
        Wanted {
            name: self.name(),
            options,
            objects: self.objects,
            bitmap: None,
            write: true,
            force_share: false,
            cache: self.args.cache,
            user: "the backup's target",
            access: Access {
                read: true,
                write: true,
                alone_writing: true,
                ..Access::default()
            },
        }
    }

    /// Whoever else writes to a file would find it emptied: making one minds
    /// only others who make one.
    async fn check_alone(&self, shard: &Shard, graph: &mut Graph) -> Result<(), String> {
        let mut options = Map::new();
        options.insert("driver".into(), Value::from("file"));
        let disk = self.wanted(options).open(shard, graph).await?;
        graph.detach(disk.user).await;
        crate::open::close(shard, graph, &disk.chain.nodes)
            .await
            .map_err(|error| self.wrong(&graph_reason(error)))
    }

    /// How it is recognized.
    ///
    /// # Errors
    ///
    /// It cannot be looked at.
    pub(crate) fn describe(&self) -> Result<TargetDescription, String> {
        let place = match &self.place {
            Place::File(path) | Place::Device(path) => Some(Identity::of(path)?),
            Place::Missing(_) | Place::Elsewhere => None,
        };
        let place = place.map(|place| Identity {
            // They change while it is written.
            size_bytes: 0,
            modified_ns: None,
            ..place
        });
        Ok(TargetDescription {
            name: self.name().into(),
            format: self.format().name().into(),
            place,
        })
    }

    fn check_unclaimed(&self, path: &Path) -> Result<(), String> {
        if is_claimed(path) {
            return Err(self.wrong("it is in use: mounted, or part of another device"));
        }
        Ok(())
    }

    fn wrong(&self, why: &str) -> String {
        format!("'{}': {why}", self.name())
    }
}
