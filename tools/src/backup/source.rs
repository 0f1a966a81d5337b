//! The disk that is backed up, and what of it.

use std::sync::Arc;

use ringback_block::bitmap::{BitmapError, DirtyBitmap, default_granularity};
use ringback_block::graph::{Access, Graph};
use ringback_block::span::Span;
use ringback_ring::Shard;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::args::{Args, BitmapModeArg};
use super::open::{Disk, LOCKED, Wanted};
use super::place::{Identity, Place, reason};
use super::server_bitmap;
use super::state::{BitmapDescription, SourceDescription};
use crate::open::{HEAD_BYTES, Objects, probed_format};

/// Open for reading only, whatever is to become of a bitmap in it: an image that
/// is open for writing when the process dies loses its bitmaps.
pub(crate) struct Source {
    pub(crate) disk: Disk,
    pub(crate) size: u64,
    pub(crate) selection: Selection,
    /// Its bitmaps are those of an NBD server.
    pub(crate) is_of_server: bool,
}

/// What is copied.
pub(crate) enum Selection {
    /// Everything.
    Full,
    /// What is dirty in a bitmap.
    Increment {
        name: String,
        bits: Arc<DirtyBitmap>,
    },
    /// Everything, as the bitmap could not be used.
    FullInstead {
        why: String,
        /// It is there, and has to make room for a new one.
        is_there: bool,
    },
}

impl Source {
    /// Opens the disk and decides what of it is copied.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn open(
        shard: &Shard,
        graph: &mut Graph,
        args: &Args,
        objects: &Objects,
    ) -> Result<Self, String> {
        let place = Place::of(&args.source)?;
        if matches!(place, Place::Missing(_)) {
            return Err(format!("'{}': no such file or directory", args.source));
        }
        let driver = driver(args, &place);
        let mut options = Map::new();
        if let Some(driver) = driver {
            options.insert("driver".into(), Value::from(driver));
        }
        let wanted = Wanted {
            name: &args.source,
            options,
            objects,
            bitmap: args.bitmap.as_deref(),
            write: false,
            force_share: args.force_share,
            cache: args.cache,
            user: "the backup",
            access: Access {
                read: true,
                write: false,
                alone_writing: !args.force_share,
                ..Access::default()
            },
        };
        let disk = wanted.open(shard, graph).await.map_err(|error| {
            if error.contains(LOCKED) {
                format!("{error}\nA backup of a disk that is being written to is of no single instant; --force-share makes one all the same")
            } else {
                error
            }
        })?;
        if driver == Some("raw") && args.source_format.is_none() {
            check_raw(shard, graph, args, &disk).await?;
        }
        let size = graph.size(disk.node()).map_err(|error| error.to_string())?;
        let mut source = Self {
            disk,
            size,
            selection: Selection::Full,
            is_of_server: false,
        };
        if let Some(export) = source.export(graph) {
            source.is_of_server = true;
            source.selection = source.select_by_server(shard, graph, args, &export).await?;
        } else {
            source.check_writable(graph, args)?;
            source.selection = source.select(graph, args)?;
        }
        Ok(source)
    }

    /// What becomes of the bitmap: a server's is its owner's.
    pub(crate) fn bitmap_mode(&self, args: &Args) -> BitmapModeArg {
        if self.is_of_server {
            BitmapModeArg::Never
        } else {
            args.bitmap_mode()
        }
    }

    /// The node of the NBD export that is the whole disk.
    fn export(&self, graph: &Graph) -> Option<String> {
        let top = &self.disk.chain.top;
        if graph.export(&top.node).is_some() {
            return Some(top.node.clone());
        }
        let is_whole = ["offset", "size"]
            .iter()
            .all(|option| !top.options.contains_key(*option));
        let mut below = graph.children(&top.node).into_iter();
        let (_, below) = below.find(|_| top.driver == "raw" && is_whole)?;
        graph.export(below).map(|_| below.to_owned())
    }

    /// What of an export is copied.
    async fn select_by_server(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        args: &Args,
        export: &str,
    ) -> Result<Selection, String> {
        if args.new_bitmap.is_some() {
            return Err(
                "--new-bitmap: whoever drives the NBD server begins its bitmaps, at the instant \
                 of which the export is"
                    .into(),
            );
        }
        let Some(name) = &args.bitmap else {
            return Ok(Selection::Full);
        };
        if let Some(mode @ (BitmapModeArg::OnSuccess | BitmapModeArg::Always)) = args.bitmap_mode {
            return Err(format!(
                "--bitmap-mode {}: the bitmap is the NBD server's, and whoever drives that clears \
                 it; leave the option out",
                mode.name()
            ));
        }
        match graph.export(export) {
            Some(server) if !server.has_bitmap() => {
                let why = server_bitmap::missing(server, name);
                if args.or_full {
                    let is_there = false;
                    return Ok(Selection::FullInstead { why, is_there });
                }
                Err(format!(
                    "'{}': {why}; --or-full makes a full backup then",
                    args.source
                ))
            }
            _ => {
                let node = self.disk.node();
                let bits = server_bitmap::fetch(shard, graph, node, export, name).await;
                let bits = bits.map_err(|error| format!("'{}': {error}", args.source))?;
                let name = name.clone();
                Ok(Selection::Increment { name, bits })
            }
        }
    }

    fn is_qcow2(&self) -> bool {
        self.disk.chain.top.driver == "qcow2"
    }

    /// The bitmap is changed at the very end: what stands in the way is said now.
    fn check_writable(&self, graph: &Graph, args: &Args) -> Result<(), String> {
        if args.bitmap.is_some() || args.new_bitmap.is_some() {
            let version = self.disk.chain.top.header.as_ref();
            let version = version.map_or(0, |header| header.version);
            if !self.is_qcow2() || version < 3 {
                return Err(format!(
                    "'{}' is neither a qcow2 image of version 3 nor a whole NBD export: only \
                     these have bitmaps",
                    args.source
                ));
            }
        }
        if !args.writes_to_source() {
            return Ok(());
        }
        let Some(file) = graph.file(self.disk.node()) else {
            return Err(format!(
                "'{}' lies in no file or device here: a bitmap in it can only be read, with \
                 --bitmap-mode never",
                args.source
            ));
        };
        let opened = std::fs::OpenOptions::new().write(true).open(file.path());
        opened.map_err(|error| {
            format!(
                "'{}' cannot be written, and its bitmap is to be changed: {}; \
                 --bitmap-mode never leaves it alone",
                args.source,
                reason(&error)
            )
        })?;
        if let Some(name) = &args.new_bitmap {
            let granularity = default_granularity(graph.cluster_size(self.disk.node()).ok());
            let bitmaps = graph.bitmaps(self.disk.node());
            let bitmaps = bitmaps.map_err(|error| error.to_string())?;
            bitmaps
                .check_new(name, granularity)
                .map_err(|error| format!("--new-bitmap: {error}"))?;
        }
        Ok(())
    }

    fn select(&self, graph: &Graph, args: &Args) -> Result<Selection, String> {
        let Some(name) = &args.bitmap else {
            return Ok(Selection::Full);
        };
        let bitmaps = graph.bitmaps(self.disk.node());
        let bitmaps = bitmaps.map_err(|error| error.to_string())?;
        let found = bitmaps.get(name);
        let usable = match found {
            None => Err(BitmapError::NotFound(name.clone())),
            Some(bitmap) => bitmap.check_usable(true).map(|()| bitmap),
        };
        match usable {
            Ok(bitmap) => {
                if !bitmap.flags().recording {
                    eprintln!(
                        "ringback: warning: bitmap '{name}' does not record: what was written \
                         since it was disabled is not part of the increment"
                    );
                }
                Ok(Selection::Increment {
                    name: name.clone(),
                    bits: Arc::clone(bitmap.bits()),
                })
            }
            Err(error) if args.or_full => Ok(Selection::FullInstead {
                why: error.to_string(),
                is_there: found.is_some(),
            }),
            Err(error) => Err(format!(
                "--bitmap: {error}; --or-full makes a full backup then"
            )),
        }
    }

    /// What is to be on the target of its own.
    pub(crate) fn areas(&self) -> Vec<Span> {
        match &self.selection {
            Selection::Full | Selection::FullInstead { .. } => {
                let whole = Span::new(0, self.size);
                (!whole.is_empty()).then_some(whole).into_iter().collect()
            }
            Selection::Increment { bits, .. } => bits
                .areas()
                .map(|area| Span::new(area.offset, area.len))
                .collect(),
        }
    }

    /// The bitmap that says what is copied.
    pub(crate) fn increment(&self) -> Option<&str> {
        match &self.selection {
            Selection::Increment { name, .. } => Some(name),
            _ => None,
        }
    }

    /// How it is recognized.
    ///
    /// # Errors
    ///
    /// One of its files cannot be looked at.
    pub(crate) fn describe(&self, graph: &Graph, args: &Args) -> Result<SourceDescription, String> {
        let paths = self.disk.paths(graph);
        let files: Result<_, _> = paths.iter().map(|path| Identity::of(path)).collect();
        let place = Place::of(&args.source)?;
        let name = match (&place, paths.is_empty()) {
            (Place::File(path) | Place::Device(path), _) => path
                .canonicalize()
                .map_or_else(|_| args.source.clone(), |path| path.display().to_string()),
            _ => args.source.clone(),
        };
        let bitmap = match &self.selection {
            Selection::Increment { name, bits } => Some(BitmapDescription {
                name: name.clone(),
                sha256: digest(bits),
            }),
            _ => None,
        };
        Ok(SourceDescription {
            name,
            format: self.disk.chain.top.driver.into(),
            size_bytes: self.size,
            files: files?,
            bitmap,
        })
    }
}

/// The format that is not left to be found by looking at the image. What a guest
/// writes to a disk may look like an image, whose header could name any file as
/// its backing file: so only regular files are looked at, as images are that.
fn driver(args: &Args, place: &Place) -> Option<&'static str> {
    if let Some(format) = args.source_format {
        return Some(format.name());
    }
    match place {
        Place::File(path) if path.extension().is_none_or(|ending| ending != "raw") => None,
        // Its name says what it is, whatever it looks like.
        Place::Elsewhere if args.source.starts_with("json:") => None,
        _ => Some("raw"),
    }
}

/// Whether what was taken for raw without anybody saying so looks so.
async fn check_raw(shard: &Shard, graph: &Graph, args: &Args, disk: &Disk) -> Result<(), String> {
    let head = graph.peek(shard, disk.node(), HEAD_BYTES).await;
    let head = head.map_err(|error| error.to_string())?;
    match probed_format(&head) {
        None => Ok(()),
        Some(format) => Err(format!(
            "'{}' begins as an image of format {format} does; say with -f raw or -f qcow2 what it \
             is",
            args.source
        )),
    }
}

fn digest(bits: &DirtyBitmap) -> String {
    let mut hash = Sha256::new();
    hash.update(bits.size().to_le_bytes());
    hash.update(bits.granularity().to_le_bytes());
    for index in 0..bits.word_count() {
        hash.update(bits.word(index).to_le_bytes());
    }
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
