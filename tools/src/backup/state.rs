//! What is kept beside the target so that a backup can go on.
//!
//! A file of JSON: which backup it is, and which bytes are durably on the target.
//! It is written whole to a temporary file, which is made durable and then gets
//! the name, so that there is always one good state or none. It claims nothing
//! that a flush of the target has not made durable before; and what it claims is
//! compared with the source before it is believed.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use ringback_block::span::Span;
use serde::{Deserialize, Serialize};

use super::place::{Identity, reason};

/// Of the file. It changes when the meaning of something in it does.
const FORMAT: u32 = 1;

/// Everything in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    format: u32,
    program: String,
    pub(crate) backup: Description,
    pub(crate) stage: Stage,
    /// Offset and length of what is durable, or need not be copied.
    done: Vec<(u64, u64)>,
}

/// How far a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    Copying,
    /// Everything is there; what is left is to verify it, and the source's bitmap.
    Copied,
}

/// Which backup it is: what must be the same for another run to go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) source: SourceDescription,
    pub(crate) target: TargetDescription,
    pub(crate) options: Options,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceDescription {
    /// As it was given.
    pub(crate) name: String,
    pub(crate) format: String,
    pub(crate) size_bytes: u64,
    /// All files that the disk consists of.
    pub(crate) files: Vec<Identity>,
    /// The bitmap that says what is copied.
    pub(crate) bitmap: Option<BitmapDescription>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BitmapDescription {
    pub(crate) name: String,
    /// Of its granularity and its bits.
    pub(crate) sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetDescription {
    /// As it was given.
    pub(crate) name: String,
    pub(crate) format: String,
    /// Where it is, if it is a file or device here; size and time change.
    pub(crate) place: Option<Identity>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    pub(crate) bitmap: Option<String>,
    pub(crate) bitmap_mode: Option<String>,
    pub(crate) new_bitmap: Option<String>,
    pub(crate) backing: Option<String>,
    pub(crate) compress: bool,
    /// The target is the previous backup.
    #[serde(default)]
    pub(crate) update: bool,
}

impl Description {
    /// Why a run that is described so cannot go on with this backup.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        let (ours, theirs) = (&self.source, &other.source);
        if (&ours.name, &ours.format) != (&theirs.name, &theirs.format) {
            return Some(format!(
                "it is of the {} source '{}'",
                ours.format, ours.name
            ));
        }
        if (ours.size_bytes, &ours.files) != (theirs.size_bytes, &theirs.files) {
            return Some(format!("the source '{}' has changed since", ours.name));
        }
        if ours.bitmap != theirs.bitmap {
            return Some("the bitmap has changed since, or it was another one".into());
        }
        if self.options != other.options {
            return Some("it was begun with other options".into());
        }
        let (ours, theirs) = (&self.target, &other.target);
        if ours.format != theirs.format {
            return Some(format!("its target has the format {}", ours.format));
        }
        let is_same_place = match (&ours.place, &theirs.place) {
            (Some(ours), Some(theirs)) => ours.is_same_place(theirs),
            (None, None) => ours.name == theirs.name,
            _ => false,
        };
        (!is_same_place).then(|| format!("it is of another target than '{}'", theirs.name))
    }
}

impl State {
    /// Nothing is done yet.
    pub(crate) fn new(backup: Description) -> Self {
        Self {
            format: FORMAT,
            program: concat!("ringback ", env!("CARGO_PKG_VERSION")).into(),
            backup,
            stage: Stage::Copying,
            done: Vec::new(),
        }
    }

    /// What is done, as far as the disk reaches.
    pub(crate) fn done(&self) -> Vec<Span> {
        let size = self.backup.source.size_bytes;
        let mut end = 0;
        let spans = self.done.iter().map_while(|&(offset, len)| {
            let last = offset.checked_add(len)?;
            let in_order = offset >= end && last <= size;
            end = last;
            in_order.then(|| Span::new(offset, len))
        });
        spans.collect()
    }

    /// This is done, and durable.
    pub(crate) fn set_done(&mut self, done: &[Span]) {
        self.done = done.iter().map(|span| (span.offset, span.len)).collect();
    }

    /// Reads it; none: there is no such file.
    ///
    /// # Errors
    ///
    /// It is there and cannot be used.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, String> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("'{}': {}", path.display(), reason(&error))),
        };
        let unusable = |why: &str| {
            format!(
                "'{}' is not the state of a backup that this program can go on with: {why}",
                path.display()
            )
        };
        let state: Self =
            serde_json::from_slice(&text).map_err(|error| unusable(&error.to_string()))?;
        if state.format != FORMAT {
            return Err(unusable(&format!("its format is {}", state.format)));
        }
        Ok(Some(state))
    }

    /// Writes it in the place of an older one, durably.
    ///
    /// # Errors
    ///
    /// The reason; the older one is still there then.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let written = || -> std::io::Result<()> {
            let directory = directory_of(path);
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            // First the content, then the name, or the name might have none.
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            sync_directory(&directory)
        };
        written().map_err(|error| format!("cannot write '{}': {}", path.display(), reason(&error)))
    }

    /// Takes it away: there is nothing to go on with.
    pub(crate) fn remove(path: &Path) -> Result<(), String> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(format!(
                "cannot remove '{}': {}",
                path.display(),
                reason(&error)
            )),
            _ => Ok(()),
        }
    }
}

/// The directory that a path lies in.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.into(),
        _ => ".".into(),
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            source: SourceDescription {
                name: "a".into(),
                format: "raw".into(),
                size_bytes: 1 << 20,
                files: Vec::new(),
                bitmap: None,
            },
            target: TargetDescription {
                name: "b".into(),
                format: "raw".into(),
                place: None,
            },
            options: Options {
                bitmap: None,
                bitmap_mode: None,
                new_bitmap: None,
                backing: None,
                compress: false,
                update: false,
            },
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        assert_eq!(State::read(&path), Ok(None));
        let mut state = State::new(description());
        state.set_done(&[Span::new(0, 65536), Span::new(131_072, 65536)]);
        state.write(&path).expect("it can be written");
        state.stage = Stage::Copied;
        state.write(&path).expect("and once more");
        assert_eq!(State::read(&path), Ok(Some(state)));
        State::remove(&path).expect("it can be removed");
        assert_eq!(
            std::fs::read_dir(directory.path())
                .expect("a directory")
                .count(),
            0
        );
    }

    #[test]
    fn nonsense_is_not_believed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        for text in ["", "{}", "[1]"] {
            std::fs::write(&path, text).expect("a file");
            assert!(State::read(&path).is_err(), "{text}");
        }
        let mut state = State::new(description());
        state.done = vec![(0, 4096), (2048, 4096), (8192, 4096)];
        assert_eq!(state.done(), [Span::new(0, 4096)]);
        state.done = vec![(0, u64::MAX), (1, u64::MAX)];
        assert_eq!(state.done(), []);
    }

    #[test]
    fn another_backup_is_recognized() {
        let ours = description();
        assert_eq!(ours.difference(&ours), None);
        let mut theirs = ours.clone();
        theirs.options.compress = true;
        assert!(ours.difference(&theirs).is_some());
        let mut theirs = ours.clone();
        theirs.source.size_bytes += 512;
        let why = ours.difference(&theirs).expect("it is another one");
        assert!(why.contains("has changed"), "{why}");
        let mut theirs = ours.clone();
        theirs.target.name = "c".into();
        assert!(ours.difference(&theirs).is_some());
    }
}
