//! What an image has to say of itself beyond its sizes.

use ringback_block::format::qcow2::Compression;
use ringback_block::format::qcow2::header::Header;
use serde_json::{Value, json};

/// What queries show of a qcow2 image, as QMP has it.
pub(crate) fn describe_qcow2(header: &Header, is_corrupt: bool) -> Value {
    if header.version < 3 {
        return json!({ "compat": "0.10", "compression-type": "zlib", "refcount-bits": 16 });
    }
    let mut data = json!({
        "compat": "1.1",
        "compression-type": compression(header),
        "lazy-refcounts": header.has_lazy_refcounts(),
        "refcount-bits": 1 << header.refcount_order,
        "corrupt": is_corrupt,
        "extended-l2": header.has_extended_l2(),
    });
    if let Some(data_file) = &header.extensions.data_file {
        data["data-file"] = String::from_utf8_lossy(data_file).into();
        data["data-file-raw"] = header.is_raw_data_file().into();
    }
    data
}

fn compression(header: &Header) -> &'static str {
    match header.compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    }
}

/// The lines about a qcow2 image that QEMU's tools show.
pub(crate) fn describe(header: &Header, is_corrupt: bool) -> Vec<String> {
    if header.version < 3 {
        return vec![
            "compat: 0.10".into(),
            "compression type: zlib".into(),
            "refcount bits: 16".into(),
        ];
    }
    let compression = compression(header);
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
