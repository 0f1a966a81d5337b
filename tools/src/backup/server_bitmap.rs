//! A bitmap that an NBD server shows: what is dirty in it becomes a bitmap of the
//! source's node here, which nobody records in.
//!
//! The server's own is never changed: whoever drives the server clears it, or has
//! begun the next one when the point in time began.

use std::sync::Arc;

use ringback_block::bitmap::DirtyBitmap;
use ringback_block::graph::{BitmapSpec, Graph};
use ringback_block::protocol::nbd::NbdProtocol;
use ringback_block::span::Span;
use ringback_ring::{Shard, error_text};

/// Nothing is copied in smaller units.
const GRANULARITY: u64 = 64 << 10;

/// Why the server cannot say what is dirty.
pub(crate) fn missing(export: &NbdProtocol, name: &str) -> String {
    let offered = match export.offered_bitmaps() {
        None => "it does not say which it has".into(),
        Some([]) => "it has none".into(),
        Some(names) => {
            let mut names = names.to_vec();
            names.sort();
            format!("it has '{}'", names.join("', '"))
        }
    };
    format!("the server offers no bitmap '{name}' with this export: {offered}")
}

/// Reads it, and gives `node` a bitmap of this name.
///
/// # Errors
///
/// The reason.
pub(crate) async fn fetch(
    shard: &Shard,
    graph: &mut Graph,
    node: &str,
    export: &str,
    name: &str,
) -> Result<Arc<DirtyBitmap>, String> {
    let areas = read(shard, graph, export, name).await?;
    let spec = BitmapSpec {
        name: name.into(),
        granularity: Some(GRANULARITY),
        disabled: true,
        persistent: false,
    };
    graph
        .transact(shard, &[node], async |transaction| {
            transaction.add_bitmap(node, &spec)
        })
        .await
        .map_err(|error| error.to_string())?;
    let bitmaps = graph.bitmaps(node).map_err(|error| error.to_string())?;
    let bitmap = bitmaps.get(name).ok_or("the bitmap has gone")?;
    for area in areas {
        bitmap.bits().mark(shard.index(), area.offset, area.len);
    }
    Ok(Arc::clone(bitmap.bits()))
}

/// What is dirty, in whole granules.
async fn read(shard: &Shard, graph: &Graph, export: &str, name: &str) -> Result<Vec<Span>, String> {
    let export = graph.export(export).ok_or("the export has gone")?;
    let size = export.export_size();
    let (mut areas, mut at): (Vec<Span>, u64) = (Vec::new(), 0);
    while at < size {
        let answer = export.dirty_areas(shard, at).await;
        let (dirty, end) = answer.map_err(|errno| {
            let reason = error_text(errno);
            format!("cannot read bitmap '{name}' of the server: {reason}")
        })?;
        for span in dirty {
            let span = span.widen(GRANULARITY);
            match areas.last_mut() {
                Some(last) if last.end() >= span.offset => {
                    *last = Span::between(last.offset, last.end().max(span.end()));
                }
                _ => areas.push(span),
            }
        }
        at = end;
    }
    Ok(areas)
}
