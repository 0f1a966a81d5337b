//! The bitmaps of an export: where they are, and that nobody changes them as long
//! as clients may read them.

use std::sync::Arc;

use ringback_block::bitmap::DirtyBitmap;
use ringback_export::nbd::ExportedBitmap;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::{Export, ExportBitmap, NbdExport};

use super::control::Control;
use crate::open::reason;

/// A bitmap, by its node and its name.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct HeldBitmap {
    node: String,
    name: String,
}

/// Bitmaps that are held, and the same as clients see them.
pub(super) type Bitmaps = (Vec<HeldBitmap>, Vec<ExportedBitmap>);

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

impl Control {
    /// All of them, or none.
    pub(super) fn hold_bitmaps(
        &mut self,
        export: &Export,
        own: &NbdExport,
        node: &str,
    ) -> Result<Bitmaps, CommandError> {
        let mut held: Vec<HeldBitmap> = Vec::new();
        let mut bitmaps = Vec::new();
        for wanted in &own.bitmaps {
            let found = self.find_bitmap(export, wanted, node);
            // Twice in the list is once in use.
            let found = found.and_then(|(node, bits)| {
                let name = wanted.name.clone();
                let place = HeldBitmap { node, name };
                if !held.contains(&place) {
                    self.check_exportable(&place)?;
                }
                Ok((place, bits))
            });
            let (place, bits) = match found {
                Ok(found) => found,
                Err(error) => {
                    self.let_bitmaps_go(&held);
                    return Err(error);
                }
            };
            if !held.contains(&place) {
                if let Err(error) = self.graph.hold_bitmap(&place.node, &place.name, true) {
                    self.let_bitmaps_go(&held);
                    return Err(generic(reason(error)));
                }
                held.push(place);
            }
            bitmaps.push(ExportedBitmap {
                name: wanted.name.clone(),
                bits,
            });
        }
        Ok((held, bitmaps))
    }

    fn check_exportable(&self, place: &HeldBitmap) -> Result<(), CommandError> {
        let HeldBitmap { node, name } = place;
        let bitmaps = self.graph.bitmaps(node);
        let bitmaps = bitmaps.map_err(|error| generic(reason(error)))?;
        let entry = bitmaps.get(name);
        let entry = entry.ok_or_else(|| generic(format!("Bitmap '{name}' is not found")))?;
        entry
            .check_usable(true)
            .map_err(|error| generic(error.to_string()))
    }

    /// The node that has a bitmap, and its bits.
    fn find_bitmap(
        &self,
        export: &Export,
        wanted: &ExportBitmap,
        node: &str,
    ) -> Result<(String, Arc<DirtyBitmap>), CommandError> {
        let name = &wanted.name;
        let owner = match &wanted.node {
            Some(given) => {
                if !self.graph.contains(given) {
                    return Err(generic(format!("Node '{given}' not found")));
                }
                given.clone()
            }
            None => {
                let owner = self.graph.node_with_bitmap(node, name);
                let owner =
                    owner.ok_or_else(|| generic(format!("Bitmap '{name}' is not found")))?;
                owner.to_owned()
            }
        };
        let bitmaps = self.graph.bitmaps(&owner);
        let bitmaps = bitmaps.map_err(|error| generic(reason(error)))?;
        let entry = bitmaps.get(name);
        let entry = entry.ok_or_else(|| generic(format!("Dirty bitmap '{name}' not found")))?;
        let would_change = entry.flags().recording && !self.is_read_only(&owner);
        if wanted.node.is_none() && !export.writable && would_change {
            return Err(generic(format!(
                "Enabled bitmap '{name}' incompatible with readonly export"
            )));
        }
        Ok((owner, Arc::clone(entry.bits())))
    }

    pub(super) fn let_bitmaps_go(&mut self, held: &[HeldBitmap]) {
        for place in held {
            // Its node may have gone.
            let _ = self.graph.hold_bitmap(&place.node, &place.name, false);
        }
    }
}
