//! `raw`: another node's bytes, or a window onto them.

use serde::Serialize;

use super::{BlockdevOptions, Child, Children, Role};
use crate::error::{OptionError, Result};
use crate::visit::Reader;

/// Options of `raw`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RawOptions<N = BlockdevOptions> {
    /// Where the bytes are.
    pub file: Child<N>,
    /// Where the window begins; any byte, at most 2^63 - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How long the window is; whole sectors, at most 2^63 - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl<N> RawOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        Ok(Self {
            file: children.required(reader, "file", Role::Storage)?,
            offset: reader.not_negative("offset")?,
            size: reader.not_negative("size")?,
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.size {
            Some(size) if size % 512 != 0 => Err(OptionError::SizeNotInSectors),
            _ => Ok(()),
        }
    }
}
