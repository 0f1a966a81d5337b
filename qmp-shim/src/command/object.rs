//! Objects that are no nodes, and what can be asked of them.

use serde_json::Value;

use super::argument::{Arguments, arguments};
use crate::error::Result;
use crate::throttle_group::ThrottleGroupOptions;
use crate::visit::Reader;

arguments! {
    /// Arguments of `object-del`.
    pub struct ObjectDel {
        /// The object.
        id: String = "id",
    }

    /// Arguments of `qom-list-types`.
    pub struct QomListTypes {
        /// Only types that are this, too.
        implements: Option<String> = "implements",
        /// Types without objects of their own, too; default false.
        is_abstract: Option<bool> = "abstract",
    }

    /// Arguments of `qom-list`.
    pub struct QomList {
        /// The object.
        path: String = "path",
    }

    /// Arguments of `qom-get`.
    pub struct QomGet {
        /// The object.
        path: String = "path",
        /// Which of its properties.
        property: String = "property",
    }

    /// Arguments of `qom-set`.
    pub struct QomSet {
        /// The object.
        path: String = "path",
        /// Which of its properties.
        property: String = "property",
        /// What it shall be.
        value: Value = "value",
    }
}

/// Arguments of `object-add`: the object to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectAdd {
    /// Limits that nodes share.
    ThrottleGroup(ThrottleGroupOptions),
}

impl Arguments for ObjectAdd {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        ThrottleGroupOptions::read(reader).map(Self::ThrottleGroup)
    }
}
