//! A temporary overlay: what is written is gone when the image is closed.

use std::path::PathBuf;

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::format::qcow2::header::OpenMode;
use ringback_block::graph::{Graph, NodeSpec, Qcow2Spec};
use ringback_qmp_shim::open::ImageName;
use ringback_ring::Shard;
use ringback_ring::file::Cache;
use serde_json::Map;

use super::{Chain, Opened, reason};

/// Puts an empty qcow2 image above a chain. Its file has no name any more once it
/// is open, so that it goes away however the program ends.
///
/// # Errors
///
/// The reason; the chain is as it was then, but for nodes that have been added.
pub(crate) async fn overlay(
    shard: &Shard,
    graph: &mut Graph,
    chain: &mut Chain,
    read_only: bool,
) -> Result<(), String> {
    let base = chain.top.node.clone();
    let size = graph.size(&base).map_err(reason)?;
    let (path, handle) = temporary_file()?;
    let file = graph
        .add_unnamed(
            shard,
            NodeSpec::File {
                path,
                write: true,
                cache: Cache::Buffered,
                discard: true,
            },
        )
        .await
        .map_err(reason)?;
    drop(handle);
    chain.nodes.push(file.clone());
    let options = CreateOptions::new(size);
    graph
        .create_qcow2(shard, &file, None, &options)
        .await
        .map_err(reason)?;
    let mut settings = chain.top.settings;
    settings.read_only = read_only;
    let header = graph
        .qcow2_header(shard, &file, OpenMode::ReadWrite)
        .await
        .map_err(reason)?;
    let spec = Qcow2Spec {
        file,
        backing: Some(base),
        data_file: None,
        options: OpenOptions::new(true),
        force_share: false,
    };
    let node = graph
        .add_unnamed(shard, NodeSpec::Qcow2(spec))
        .await
        .map_err(reason)?;
    chain.nodes.push(node.clone());
    chain.top = Opened {
        node,
        driver: "qcow2",
        name: ImageName::new("qcow2", &Map::new(), &[]),
        was_probed: false,
        settings,
        header: Some(header),
        options: Map::new(),
        parent: None,
    };
    Ok(())
}

/// A file in the directory for large temporary files; its name goes away with
/// the handle.
fn temporary_file() -> Result<(PathBuf, tempfile::TempPath), String> {
    let directory = std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let file = tempfile::Builder::new()
        .prefix("vl.")
        .tempfile_in(&directory)
        .map_err(|error| {
            let directory = directory.display();
            format!("Could not make a temporary file in '{directory}': {error}")
        })?;
    let path = file.into_temp_path();
    Ok((path.to_path_buf(), path))
}
