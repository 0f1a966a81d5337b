//! Making images, from the options of QMP.

use ringback_block::format::qcow2::Compression;
use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::protocol;
use ringback_block::request::Preallocation;
use ringback_qmp_shim::command::{
    BlockdevCreateOptionsQcow2, BlockdevQcow2Version, PreallocMode, Qcow2CompressionType,
};
use ringback_ring::Shard;

/// Makes a file that reads as zeroes.
///
/// # Errors
///
/// The reason, in QEMU's words.
pub(crate) async fn create_file(
    shard: &Shard,
    path: &str,
    size: u64,
    preallocation: Preallocation,
) -> Result<(), String> {
    let created = protocol::create_file(shard, path.into(), size, preallocation).await;
    created.map_err(|error| error.to_string())
}

/// How the space of a new image or file is reserved.
pub(crate) fn preallocation(mode: Option<PreallocMode>) -> Preallocation {
    match mode {
        None | Some(PreallocMode::Off) => Preallocation::Off,
        Some(PreallocMode::Metadata) => Preallocation::Metadata,
        Some(PreallocMode::Falloc) => Preallocation::Falloc,
        Some(PreallocMode::Full) => Preallocation::Full,
    }
}

/// What the options of `blockdev-create` say of a qcow2 image, which remembers the
/// file name of its data file.
pub(crate) fn qcow2_create_options(
    asked: &BlockdevCreateOptionsQcow2,
    data_file: Option<String>,
) -> CreateOptions {
    let defaults = CreateOptions::new(asked.size);
    let refcount_bits = match asked.refcount_bits {
        None => defaults.refcount_bits,
        // Nothing negative is a power of two.
        Some(bits) => u64::try_from(bits).unwrap_or(0),
    };
    CreateOptions {
        version: match asked.version {
            Some(BlockdevQcow2Version::V2) => 2,
            Some(BlockdevQcow2Version::V3) | None => 3,
        },
        cluster_size: asked.cluster_size.unwrap_or(defaults.cluster_size),
        refcount_bits,
        lazy_refcounts: asked.lazy_refcounts.unwrap_or(false),
        extended_l2: asked.extended_l2.unwrap_or(false),
        data_file,
        data_file_raw: asked.data_file_raw.unwrap_or(false),
        backing_file: asked.backing_file.clone(),
        backing_format: asked.backing_fmt.map(str::to_owned),
        compression: match asked.compression_type {
            Some(Qcow2CompressionType::Zstd) => Compression::Zstd,
            Some(Qcow2CompressionType::Zlib) | None => Compression::Zlib,
        },
        preallocation: preallocation(asked.preallocation),
        ..defaults
    }
}
