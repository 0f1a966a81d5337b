//! The NBD server and the exports of nodes. What they are made of is in
//! [`crate::command_line`], where the options of the same things are read.

use super::argument::{Arguments, arguments, set_aside};
use crate::command_line::{ArgumentError, Export, NbdServer};
use crate::error::Result;
use crate::visit::{Reader, words};

arguments! {
    /// Arguments of `nbd-server-add`.
    pub struct NbdServerAdd {
        /// Name of the export; default: as the node.
        name: Option<String> = "name",
        /// What a client is told about it.
        description: Option<String> = "description",
        /// The device or node.
        device: String = "device",
        /// Whether clients may write; default false.
        writable: Option<bool> = "writable",
        /// A bitmap that clients can see.
        bitmap: Option<String> = "bitmap",
    }

    /// Arguments of `nbd-server-remove`.
    pub struct NbdServerRemove {
        /// Name of the export.
        name: String = "name",
        /// Whether clients stand in the way; default safe.
        mode: Option<BlockExportRemoveMode> = "mode",
    }

    /// Arguments of `block-export-del`.
    pub struct BlockExportDel {
        /// The export.
        id: String = "id",
        /// Whether clients stand in the way; default safe.
        mode: Option<BlockExportRemoveMode> = "mode",
    }
}

words! {
    /// Whether clients stand in the way of a removal.
    pub enum BlockExportRemoveMode {
        /// They do.
        Safe = "safe",
        /// They lose their connection.
        Hard = "hard",
    }
}

/// Arguments of `nbd-server-start`: the server to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct NbdServerStart {
    /// The server, or why there can be none although the schema allows it.
    pub server: std::result::Result<NbdServer, ArgumentError>,
}

impl Arguments for NbdServerStart {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        let server = set_aside(NbdServer::from_arguments(reader))?;
        Ok(Self { server })
    }
}

/// Arguments of `block-export-add`: the export to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockExportAdd {
    /// The export, or why there can be none although the schema allows it.
    pub export: std::result::Result<Export, ArgumentError>,
}

impl Arguments for BlockExportAdd {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        let export = set_aside(Export::from_arguments(reader))?;
        Ok(Self { export })
    }
}
