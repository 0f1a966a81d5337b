//! What an image has to say of itself beyond its sizes.

use ringback_block::format::qcow2::Compression;
use ringback_block::format::qcow2::header::Header;

/// The lines about a qcow2 image that QEMU's tools show.
pub(crate) fn describe(header: &Header, is_corrupt: bool) -> Vec<String> {
    if header.version < 3 {
        return vec![
            "compat: 0.10".into(),
            "compression type: zlib".into(),
            "refcount bits: 16".into(),
        ];
    }
    let compression = match header.compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut lines = vec![
        "compat: 1.1".into(),
        format!("compression type: {compression}"),
        format!("lazy refcounts: {}", header.has_lazy_refcounts()),
        format!("refcount bits: {}", 1 << header.refcount_order),
    ];
    if let Some(data_file) = &header.extensions.data_file {
        let data_file = String::from_utf8_lossy(data_file);
        lines.push(format!("data file: {data_file}"));
        lines.push(format!("data file raw: {}", header.is_raw_data_file()));
    }
    lines.push(format!("corrupt: {is_corrupt}"));
    lines.push(format!("extended l2: {}", header.has_extended_l2()));
    lines
}
