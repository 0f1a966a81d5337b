//! `file` and `host_device`: storage that the host's kernel has.

use serde::Serialize;

use super::Settings;
use crate::error::{OptionError, Result};
use crate::visit::{Reader, words};

words! {
    /// Whether a file is locked against other processes.
    pub enum Locking {
        /// Where the host can do it well.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

words! {
    /// By which of QEMU's ways a file is read and written.
    pub enum Aio {
        /// A pool of threads.
        Threads = "threads",
        /// Linux AIO; needs `cache.direct`.
        Native = "native",
        /// `io_uring`.
        IoUring = "io_uring",
    }
}

/// Options of `file` and `host_device`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileOptions {
    /// The path, taken as it is: no prefix has a meaning.
    pub filename: String,
    /// Locks against other processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locking: Option<Locking>,
    /// The way of reading and writing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aio: Option<Aio>,
}

impl FileOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let filename = reader.required("filename", Reader::text)?;
        reader.unsupported("pr-manager")?;
        let locking = reader.word("locking")?;
        let aio = reader.word("aio")?;
        for name in ["aio-max-batch", "drop-cache", "x-check-cache-dropped"] {
            reader.unsupported(name)?;
        }
        Ok(Self {
            filename,
            locking,
            aio,
        })
    }
}

impl FileOptions {
    pub(super) fn check(&self, settings: &Settings) -> Result<()> {
        if self.filename.contains('\0') {
            return Err(OptionError::NulInFileName {
                name: self.filename.clone(),
            });
        }
        if self.aio == Some(Aio::Native) && !settings.direct {
            return Err(OptionError::NativeNeedsDirect);
        }
        Ok(())
    }
}
