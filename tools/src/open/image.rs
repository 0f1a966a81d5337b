//! Making an image of a given format in a file, as commands do that take a file
//! name.

use ringback_block::format::qcow2::create::CreateOptions;
use ringback_block::graph::{Graph, NodeSpec};
use ringback_block::request::Preallocation;
use ringback_ring::Shard;
use ringback_ring::file::Cache;

use super::{create_file, reason};

/// An image to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewImage<'a> {
    /// Its file.
    pub(crate) path: &'a str,
    /// `raw`, `file` or `qcow2`.
    pub(crate) format: &'a str,
    /// Of the disk, in bytes.
    pub(crate) size: u64,
    /// What its header names as backing file, and the format of that.
    pub(crate) backing: Option<(String, &'a str)>,
}

/// Formats of QEMU that are not here, so that they can be told from nonsense.
const OTHER_FORMATS: &[&str] = &[
    "qed",
    "vmdk",
    "vdi",
    "vhdx",
    "vpc",
    "parallels",
    "qcow",
    "luks",
    "cloop",
    "dmg",
    "bochs",
    "vvfat",
];

/// Whether an image of this format can be made.
///
/// # Errors
///
/// The reason, in QEMU's words.
pub(crate) fn check_format(format: &str) -> Result<(), String> {
    match format {
        "raw" | "qcow2" | "file" => Ok(()),
        other if OTHER_FORMATS.contains(&other) => {
            Err(format!("ringback cannot make images of format '{other}'"))
        }
        other => Err(format!("Unknown file format '{other}'")),
    }
}

/// Makes the image, and says on standard output what it makes, as QEMU does.
///
/// # Errors
///
/// The reason, in QEMU's words. A file that was made stays.
pub(crate) async fn make_image(
    shard: &Shard,
    graph: &mut Graph,
    image: &NewImage<'_>,
) -> Result<(), String> {
    check_format(image.format)?;
    let is_plain = image.format != "qcow2";
    if is_plain && image.backing.is_some() {
        let format = image.format;
        return Err(format!(
            "Backing file not supported for file format '{format}'"
        ));
    }
    announce(image);
    if is_plain {
        return create_file(shard, image.path, image.size, Preallocation::Off).await;
    }
    create_file(shard, image.path, 0, Preallocation::Off).await?;
    let spec = NodeSpec::File {
        path: image.path.into(),
        write: true,
        cache: Cache::Buffered,
        discard: true,
    };
    let file = graph.add_unnamed(shard, spec).await.map_err(reason)?;
    let mut options = CreateOptions::new(image.size);
    if let Some((name, format)) = &image.backing {
        options.backing_file = Some(name.clone());
        options.backing_format = Some((*format).to_owned());
    }
    let made = graph.create_qcow2(shard, &file, None, &options).await;
    let closed = graph.remove(shard, &file).await;
    made.and(closed).map_err(reason)
}

fn announce(image: &NewImage<'_>) {
    let (path, size) = (image.path, image.size);
    if image.format != "qcow2" {
        println!("Formatting '{path}', fmt={} size={size}", image.format);
        return;
    }
    let backing = image.backing.as_ref();
    let backing = backing.map_or_else(String::new, |(name, format)| {
        format!(" backing_file={name} backing_fmt={format}")
    });
    println!(
        "Formatting '{path}', fmt=qcow2 cluster_size=65536 extended_l2=off compression_type=zlib \
         size={size}{backing} lazy_refcounts=off refcount_bits=16"
    );
}
