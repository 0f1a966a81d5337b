//! Header extensions: what follows the fixed part of a header.

use super::{
    AUTOCLEAR_BITMAPS, CRYPT_LUKS, Fields, Header, HeaderError, INCOMPATIBLE_KNOWN, until_nul,
};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const LUKS: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Where the header of the encryption lies and how long it is: two words.
const LUKS_BYTES: u32 = 16;
const BACKING_FORMAT_MAX: u32 = 16;
const BITMAPS_MAX: u32 = 65_535;
const DIRECTORY_BYTES_MAX: u64 = 67_107_840;

/// One entry of the table of feature names: a type, a bit, a name of up to 46
/// bytes.
const NAME_ENTRY: usize = 48;

/// The names that are written: type (0 incompatible, 1 compatible, 2 autoclear),
/// bit, name.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// Where the directory of persistent bitmaps lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// How many there are.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Where it lies.
    pub directory_offset: u64,
}

/// What an image's header says beyond its fixed part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Of the backing file.
    pub backing_format: Option<String>,
    /// The name of the data file, as the image has it.
    pub data_file: Option<Vec<u8>>,
    /// Persistent bitmaps.
    pub bitmaps: Option<BitmapsExtension>,
    /// The image had bitmaps that can no longer be trusted.
    pub stale_bitmaps: bool,
    /// Kept as they are: type and content.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

/// One extension: type, stated length, content. An error: it crosses the end.
type Found<'a> = Result<(u32, &'a [u8]), HeaderError>;

/// All extensions of an area, in order, up to the end mark.
fn each(area: &[u8]) -> impl Iterator<Item = Found<'_>> {
    let mut rest = area;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let fields = Fields(rest);
        let (kind, len) = (fields.u32(0), fields.u32(4) as usize);
        let Some(content) = rest.get(8..).and_then(|rest| rest.get(..len)) else {
            rest = &[];
            return Some(Err(HeaderError::ExtensionTooLarge));
        };
        // The end mark, too, must not claim more than there is.
        if kind == END {
            return None;
        }
        let next = (8 + len).next_multiple_of(8).min(rest.len());
        rest = &rest[next..];
        Some(Ok((kind, content)))
    })
}

impl Extensions {
    /// The bytes between the fixed part and the backing file's name.
    pub(super) fn area(cluster: &[u8], length: u32, end: u64) -> &[u8] {
        let end = usize::try_from(end)
            .unwrap_or(usize::MAX)
            .min(cluster.len());
        cluster.get(length as usize..end).unwrap_or_default()
    }

    /// Appends the extensions to a header that is being written.
    pub(super) fn append(&self, bytes: &mut Vec<u8>, with_names: bool) {
        let mut put = |kind: u32, content: &[u8]| {
            let len = u32::try_from(content.len()).expect("extensions fit into a cluster");
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(content);
            // The content is padded, wherever it starts: the fixed part may have any length.
            bytes.resize(
                bytes.len() + content.len().next_multiple_of(8) - content.len(),
                0,
            );
        };
        if let Some(format) = &self.backing_format {
            put(BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(DATA_FILE, name);
        }
        if with_names {
            put(FEATURE_NAMES, &name_table());
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut content = bitmaps.count.to_be_bytes().to_vec();
            content.extend_from_slice(&[0; 4]);
            content.extend_from_slice(&bitmaps.directory_size.to_be_bytes());
            content.extend_from_slice(&bitmaps.directory_offset.to_be_bytes());
            put(BITMAPS, &content);
        }
        for (kind, content) in self.unknown.iter().rev() {
            put(*kind, content);
        }
        put(END, &[]);
    }
}

impl Header {
    /// Reads all extensions. Answers whether there is one of LUKS.
    pub(super) fn parse_extensions(
        &mut self,
        area: &[u8],
        crypt_method: u32,
    ) -> Result<bool, HeaderError> {
        let mut has_luks = false;
        for found in each(area) {
            let (kind, content) = found?;
            self.parse_extension(kind, content, crypt_method)?;
            has_luks |= kind == LUKS;
        }
        Ok(has_luks)
    }

    fn parse_extension(
        &mut self,
        kind: u32,
        content: &[u8],
        crypt_method: u32,
    ) -> Result<(), HeaderError> {
        let len = u32::try_from(content.len()).map_err(|_| HeaderError::ExtensionTooLarge)?;
        match kind {
            BACKING_FORMAT if len >= BACKING_FORMAT_MAX => {
                return Err(HeaderError::BackingFormat(len));
            }
            BACKING_FORMAT => {
                let format = String::from_utf8_lossy(until_nul(content)).into_owned();
                self.extensions.backing_format = Some(format);
            }
            FEATURE_NAMES => {}
            DATA_FILE if self.has_data_file() => {
                self.extensions.data_file = Some(until_nul(content).to_vec());
            }
            // A name without the feature says nothing, and is not kept.
            DATA_FILE => {}
            LUKS => self.check_luks(content, len, crypt_method)?,
            BITMAPS => self.parse_bitmaps(content)?,
            _ => self.extensions.unknown.push((kind, content.to_vec())),
        }
        Ok(())
    }

    fn check_luks(&self, content: &[u8], len: u32, crypt_method: u32) -> Result<(), HeaderError> {
        if crypt_method != CRYPT_LUKS {
            return Err(HeaderError::UnexpectedLuks);
        }
        if len != LUKS_BYTES {
            return Err(HeaderError::LuksLength(len));
        }
        let (offset, cluster_size) = (Fields(content).u64(0), 1 << self.cluster_bits);
        if !offset.is_multiple_of(cluster_size) {
            return Err(HeaderError::LuksOffset {
                offset,
                cluster_size,
            });
        }
        Ok(())
    }

    fn parse_bitmaps(&mut self, content: &[u8]) -> Result<(), HeaderError> {
        if content.len() != 24 {
            return Err(HeaderError::BitmapsLength);
        }
        if self.autoclear & AUTOCLEAR_BITMAPS == 0 {
            self.extensions.stale_bitmaps = true;
            self.warnings.push(self.stale_bitmaps_warning().into());
            return Ok(());
        }
        let fields = Fields(content);
        let found = BitmapsExtension {
            count: fields.u32(0),
            directory_size: fields.u64(8),
            directory_offset: fields.u64(16),
        };
        let cluster_size: u64 = 1 << self.cluster_bits;
        if fields.u32(4) != 0 {
            return Err(HeaderError::BitmapsReserved);
        }
        if found.count > BITMAPS_MAX {
            return Err(HeaderError::BitmapsCount(found.count));
        }
        if found.count == 0 {
            return Err(HeaderError::NoBitmaps);
        }
        if !found.directory_offset.is_multiple_of(cluster_size) {
            return Err(HeaderError::BitmapsOffset);
        }
        if found.directory_size > DIRECTORY_BYTES_MAX {
            return Err(HeaderError::BitmapsSize(found.directory_size));
        }
        self.extensions.bitmaps = Some(found);
        Ok(())
    }

    /// What to call incompatible features that this program does not know: by
    /// the names that the image brings along, else by their bits.
    ///
    /// As in QEMU, extensions are read up to the first bad one, and the last
    /// table of names counts.
    pub(super) fn unknown_features(&self, area: &[u8], crypt_method: u32) -> String {
        let mut scratch = self.clone();
        let table = each(area)
            .map_while(|found| {
                let (kind, content) = found.ok()?;
                scratch.parse_extension(kind, content, crypt_method).ok()?;
                Some((kind, content))
            })
            .filter(|(kind, _)| *kind == FEATURE_NAMES)
            .last();
        let table = table.map_or(&[][..], |(_, content)| content);
        feature_names(table, self.incompatible & !INCOMPATIBLE_KNOWN)
    }

    fn stale_bitmaps_warning(&self) -> &'static str {
        if self.version < 3 {
            "This qcow2 v2 image contains bitmaps, but they may have been modified by a program \
             without persistent bitmap support; so now they must all be considered inconsistent\n\
             Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
        } else {
            "a program lacking bitmap support modified this file, so all bitmaps are now \
             considered inconsistent\nSome clusters may be leaked, run 'qemu-img check -r' on the \
             image file to fix."
        }
    }
}

fn feature_names(table: &[u8], mut bits: u64) -> String {
    let mut names = Vec::new();
    // The last entry may be cut: the rest of its name is empty.
    for entry in table.chunks(NAME_ENTRY) {
        let name = until_nul(entry.get(2..).unwrap_or_default());
        if name.is_empty() {
            break;
        }
        let bit = 1_u64.checked_shl(entry[1].into()).unwrap_or(0);
        if entry[0] == 0 && bits & bit != 0 {
            names.push(String::from_utf8_lossy(name).into_owned());
            bits &= !bit;
        }
    }
    if bits != 0 {
        names.push(format!("Unknown incompatible feature: {bits:x}"));
    }
    names.join(", ")
}

fn name_table() -> Vec<u8> {
    let mut table = Vec::with_capacity(NAMES.len() * NAME_ENTRY);
    for (kind, bit, name) in NAMES {
        let mut entry = [0; NAME_ENTRY];
        entry[0] = kind;
        entry[1] = bit;
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        table.extend_from_slice(&entry);
    }
    table
}
