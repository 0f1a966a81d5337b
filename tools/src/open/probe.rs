//! Which format an image has, by its first bytes.

/// How many of them are looked at.
pub(crate) const HEAD_BYTES: usize = 512;

/// Marks at fixed places, by format.
const MARKS: &[(&str, usize, &[u8])] = &[
    ("qed", 0, b"QED\0"),
    ("vdi", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("luks", 0, b"LUKS\xba\xbe\0\x01"),
    ("parallels", 0, b"WithoutFreeSpace\x02\0\0\0"),
    ("parallels", 0, b"WithouFreSpacExt\x02\0\0\0"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
];

/// The format whose header this is; none: it is taken for raw.
pub(crate) fn format(head: &[u8]) -> Option<&'static str> {
    if let Some(version) = head.strip_prefix(b"QFI\xfb").and_then(big_endian) {
        return match version {
            0 => None,
            1 => Some("qcow"),
            _ => Some("qcow2"),
        };
    }
    MARKS.iter().find_map(|&(format, at, mark)| {
        let found = head.get(at..)?.starts_with(mark);
        found.then_some(format)
    })
}

fn big_endian(bytes: &[u8]) -> Option<u32> {
    let (number, _) = bytes.split_first_chunk()?;
    Some(u32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_known_and_other_data_is_raw() {
        assert_eq!(format(b"QFI\xfb\0\0\0\x03...."), Some("qcow2"));
        assert_eq!(format(b"QFI\xfb\0\0\0\x01"), Some("qcow"));
        assert_eq!(format(b"QFI\xfb\0\0\0"), None);
        assert_eq!(format(b"conectix"), Some("vpc"));
        let mut head = [0; HEAD_BYTES];
        assert_eq!(format(&head), None);
        head[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(format(&head), Some("vdi"));
        assert_eq!(format(b""), None);
    }
}
