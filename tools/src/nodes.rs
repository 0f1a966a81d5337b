//! From the words of a command line to nodes of the block graph.
//!
//! A disk is given as a path, or with `--image-opts` in QEMU's syntax
//! (`driver=raw,offset=1048576,file.driver=file,file.filename=disk.img`). What the
//! engine does not honour is refused by name.

use std::path::{Path, PathBuf};

use ringback_block::graph::NodeSpec;
use ringback_qmp_shim::blockdev::{
    Aio, BlockdevOptions, Child, DetectZeroes, Discard, DriverOptions, FileOptions, Locking,
};
use ringback_qmp_shim::visit::Reader;
use ringback_qmp_shim::{OptionError, keyval};
use ringback_ring::file::Cache;

/// A disk as somebody asked for it: the nodes that make it, bottom first.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Names and specifications.
    pub(crate) nodes: Vec<(String, NodeSpec)>,
    /// The file or device at the bottom.
    pub(crate) path: PathBuf,
}

impl Disk {
    /// The name of the node to attach to.
    #[cfg(test)]
    pub(crate) fn top(&self) -> &str {
        &self.nodes.last().expect("a disk has at least one node").0
    }

    /// Bytes of the disk above a file of so many.
    pub(crate) fn size(&self, file_size: u64) -> u64 {
        match self.nodes.last() {
            Some((
                _,
                NodeSpec::Raw {
                    size: Some(size), ..
                },
            )) => *size,
            // As the format does: part of a sector is not shown.
            Some((_, NodeSpec::Raw { offset, .. })) => file_size.saturating_sub(*offset) & !511,
            _ => file_size,
        }
    }

    /// Where its first byte lies in the file.
    pub(crate) fn offset(&self) -> u64 {
        match self.nodes.last() {
            Some((_, NodeSpec::Raw { offset, .. })) => *offset,
            _ => 0,
        }
    }

    /// A file or block device as it is.
    pub(crate) fn plain(name: &str, path: &Path, write: bool, cache: Cache) -> Self {
        let spec = NodeSpec::File {
            path: path.to_owned(),
            write,
            cache,
            discard: true,
        };
        Self {
            nodes: vec![(name.into(), spec)],
            path: path.to_owned(),
        }
    }

    /// From QEMU's `--blockdev` syntax.
    pub(crate) fn parse(name: &str, text: &str, write: bool, cache: Cache) -> Result<Self, String> {
        let options = read_options(name, text).map_err(|error| error.to_string())?;
        let mut disk = Self {
            nodes: Vec::new(),
            path: PathBuf::new(),
        };
        disk.add(name, &options, Inherited { write, cache })?;
        Ok(disk)
    }

    fn add(
        &mut self,
        name: &str,
        options: &BlockdevOptions,
        inherited: Inherited,
    ) -> Result<(), String> {
        let inherited = inherited.with(options)?;
        let spec = match &options.driver {
            DriverOptions::File(file) | DriverOptions::HostDevice(file) => {
                self.file_spec(file, options, inherited)?
            }
            DriverOptions::NullCo(_) => {
                return Err(
                    "driver 'null-co' forgets what is written: a bench could verify \
                            nothing"
                        .into(),
                );
            }
            DriverOptions::Raw(raw) => {
                let Child::Options(child) = &raw.file else {
                    return Err(
                        "the child 'file' must be given with its options here: there are \
                                no other nodes to refer to"
                            .into(),
                    );
                };
                let child_name = format!("{name}-file");
                self.add(&child_name, child, inherited)?;
                let offset = raw.offset.unwrap_or(0);
                NodeSpec::Raw {
                    file: child_name,
                    offset,
                    size: raw.size,
                }
            }
            other => {
                return Err(format!(
                    "driver '{}' cannot be the disk of a bench; use file, host_device or raw",
                    other.name()
                ));
            }
        };
        self.nodes.push((name.into(), spec));
        Ok(())
    }

    fn file_spec(
        &mut self,
        file: &FileOptions,
        options: &BlockdevOptions,
        inherited: Inherited,
    ) -> Result<NodeSpec, String> {
        if file.locking == Some(Locking::Off) {
            return Err("locking=off is not supported: images are always locked".into());
        }
        if matches!(file.aio, Some(Aio::Threads | Aio::Native)) {
            return Err("only aio=io_uring is supported".into());
        }
        let path = PathBuf::from(&file.filename);
        self.path.clone_from(&path);
        let discard = options.common.discard == Some(Discard::Unmap);
        Ok(NodeSpec::File {
            path,
            write: inherited.write,
            cache: inherited.cache,
            discard,
        })
    }
}

/// The root needs no node-name: it has one here.
fn read_options(name: &str, text: &str) -> Result<BlockdevOptions, OptionError> {
    let mut options = keyval::parse(text, Some("driver"))?;
    let (keyval::Options::Text(map) | keyval::Options::Typed(map)) = &mut options;
    if !map.contains_key("node-name") {
        map.insert("node-name".into(), name.into());
    }
    let options = BlockdevOptions::read(Reader::of(&options))?;
    options.check()?;
    Ok(options)
}

/// What a child takes from its parent unless it says otherwise.
#[derive(Clone, Copy)]
struct Inherited {
    write: bool,
    cache: Cache,
}

impl Inherited {
    fn with(self, options: &BlockdevOptions) -> Result<Self, String> {
        let common = &options.common;
        let unsupported = [
            ("auto-read-only", common.auto_read_only == Some(true)),
            ("force-share", common.force_share == Some(true)),
            ("cache.no-flush", common.cache.no_flush == Some(true)),
            (
                "detect-zeroes",
                !matches!(common.detect_zeroes, None | Some(DetectZeroes::Off)),
            ),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, asked)| *asked) {
            return Err(format!("option '{name}' is not supported here"));
        }
        let cache = match common.cache.direct {
            None => self.cache,
            Some(true) => Cache::Direct,
            Some(false) => Cache::Buffered,
        };
        Ok(Self {
            write: self.write && common.read_only != Some(true),
            cache,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Disk, String> {
        Disk::parse("disk", text, true, Cache::Auto)
    }

    #[test]
    fn a_window_of_a_file_becomes_two_nodes() {
        let disk = parse("driver=raw,node-name=x,offset=1048576,file.driver=file,file.filename=a.img,file.cache.direct=off")
            .expect("good options");
        assert_eq!(disk.top(), "disk");
        assert_eq!(disk.path, Path::new("a.img"));
        assert!(matches!(
            disk.nodes[0].1,
            NodeSpec::File {
                cache: Cache::Buffered,
                write: true,
                ..
            }
        ));
        assert!(matches!(
            disk.nodes[1].1,
            NodeSpec::Raw {
                offset: 1_048_576,
                size: None,
                ..
            }
        ));
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (text, expected) in [
            (
                "driver=file,node-name=x,filename=a,locking=off",
                "locking=off",
            ),
            (
                "driver=file,node-name=x,filename=a,aio=threads",
                "aio=io_uring",
            ),
            (
                "driver=null-co,node-name=x,force-share=on,read-only=on",
                "force-share",
            ),
            ("driver=qcow2,node-name=x,file=a", "qcow2"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
