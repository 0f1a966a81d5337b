//! What can be asked about ranges of a disk: contexts of metadata.

use ringback_block::protocol::nbd::wire::{ALLOCATION_DEPTH, BASE_ALLOCATION, DIRTY_BITMAP_PREFIX};

use super::export::Export;

/// One thing that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Context {
    /// What takes space and what reads as zeroes.
    Allocation,
    /// Which image of a chain holds it.
    Depth,
    /// What is dirty in the bitmap of this place in the export's list.
    Bitmap(usize),
}

impl Context {
    /// As answers name it.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Allocation => 0,
            Self::Depth => 1,
            Self::Bitmap(index) => {
                u32::try_from(index).map_or(u32::MAX, |index| index.saturating_add(2))
            }
        }
    }

    pub(super) fn name(self, export: &Export) -> String {
        match self {
            Self::Allocation => BASE_ALLOCATION.into(),
            Self::Depth => ALLOCATION_DEPTH.into(),
            Self::Bitmap(index) => format!("{DIRTY_BITMAP_PREFIX}{}", export.bitmaps[index].name),
        }
    }
}

/// What a client asks for by names.
pub(super) struct Search {
    all: Vec<(Context, String)>,
    found: Vec<Context>,
}

impl Search {
    pub(super) fn new(export: &Export) -> Self {
        let depth = export.has_depth.then_some(Context::Depth);
        let bitmaps = (0..export.bitmaps.len()).map(Context::Bitmap);
        let all = std::iter::once(Context::Allocation)
            .chain(depth)
            .chain(bitmaps)
            .map(|context| (context, context.name(export)))
            .collect();
        let found = Vec::new();
        Self { all, found }
    }

    fn found(&mut self, is_meant: impl Fn(Context) -> bool) {
        for &(context, _) in &self.all {
            if is_meant(context) && !self.found.contains(&context) {
                self.found.push(context);
            }
        }
    }

    /// Everything.
    pub(super) fn all(&mut self) {
        self.found(|_| true);
    }

    /// The one of exactly this name; of two bitmaps the first.
    pub(super) fn exact(&mut self, query: &[u8]) {
        let named = self.all.iter().find(|(_, name)| name.as_bytes() == query);
        if let Some(&(context, _)) = named {
            self.found(|other| other == context);
        }
    }

    /// One, or several if the query is the start of their names.
    pub(super) fn matching(&mut self, query: &[u8]) {
        match query {
            b"base:" => self.found(|context| context == Context::Allocation),
            b"qemu:" => self.found(|context| context != Context::Allocation),
            _ if query == DIRTY_BITMAP_PREFIX.as_bytes() => {
                self.found(|context| matches!(context, Context::Bitmap(_)));
            }
            _ => self.exact(query),
        }
    }

    /// Each once, in the order of their numbers, however they were asked for.
    pub(super) fn into_contexts(mut self) -> Vec<Context> {
        self.found.sort_unstable();
        self.found
    }
}
