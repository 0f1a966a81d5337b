//! Images for the tests.

/// An image of version 3 with 64 KiB clusters and a disk of 1 MiB: header, refcount table,
/// refcount block, L1 table. Name and format of its backing file may be empty.
pub(crate) fn smallest_qcow2(backing: &str, format: &str) -> Vec<u8> {
    const CLUSTER: usize = 65536;
    const BACKING: u32 = 512;
    let mut image = vec![0; 4 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    if !backing.is_empty() {
        put(8, &u64::from(BACKING).to_be_bytes());
        put(16, &length(backing).to_be_bytes());
        put(512, backing.as_bytes());
    }
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * 65536_u64).to_be_bytes());
    put(48, &65536_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    if !format.is_empty() {
        put(104, &0xe279_2aca_u32.to_be_bytes());
        put(108, &length(format).to_be_bytes());
        put(112, format.as_bytes());
    }
    put(CLUSTER, &(2 * 65536_u64).to_be_bytes());
    for cluster in 0..4 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    image
}

fn length(text: &str) -> u32 {
    u32::try_from(text.len()).expect("names are short")
}
