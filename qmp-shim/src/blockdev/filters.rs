//! `throttle`, which holds requests back, and `copy-on-read`, which keeps what it reads.

use serde::Serialize;

use super::{BlockdevOptions, Child, Children, Role};
use crate::error::{OptionError, Result};
use crate::visit::Reader;

/// Options of `throttle`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThrottleOptions<N = BlockdevOptions> {
    /// Id of the group whose limits apply. Whether there is one is the engine's to find out.
    pub throttle_group: String,
    /// The node whose requests are held back.
    pub file: Child<N>,
}

/// Options of `copy-on-read`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CopyOnReadOptions<N = BlockdevOptions> {
    /// The image that is filled.
    pub file: Child<N>,
    /// Node-name of the last node above which data is copied; all of the chain when not
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottom: Option<String>,
}

impl<N> ThrottleOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        if reader.is_flat() {
            let file = children.required(reader, "file", Role::Storage)?;
            let group = reader.text("throttle-group")?;
            return Ok(Self {
                throttle_group: group.ok_or(OptionError::NoThrottleGroup)?,
                file,
            });
        }
        Ok(Self {
            throttle_group: reader.required("throttle-group", Reader::text)?,
            file: children.required(reader, "file", Role::Storage)?,
        })
    }
}

impl<N> CopyOnReadOptions<N> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        children: &mut impl Children<Node = N>,
    ) -> Result<Self> {
        Ok(Self {
            file: children.required(reader, "file", Role::Storage)?,
            bottom: reader.text("bottom")?,
        })
    }
}
