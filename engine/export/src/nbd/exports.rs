//! The exports that clients can choose.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::export::{Export, Visit};

/// By name; each name once.
#[derive(Debug, Default)]
pub(super) struct Exports {
    list: Mutex<Vec<Arc<Export>>>,
}

impl Exports {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Export>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Export>> {
        self.list().clone()
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<Arc<Export>> {
        let list = self.list();
        let found = list.iter().find(|export| export.name.as_bytes() == name);
        found.map(Arc::clone)
    }

    /// Chooses one. Under the lock: whoever takes an export away finds the visit.
    pub(super) fn visit(&self, name: &[u8]) -> Option<Visit> {
        let list = self.list();
        let found = list.iter().find(|export| export.name.as_bytes() == name);
        found.map(Visit::begin)
    }

    /// Offers one. Its name must be free.
    pub(super) fn add(&self, export: &Arc<Export>) {
        self.list().push(Arc::clone(export));
    }

    /// Offers one no more.
    pub(super) fn remove(&self, export: &Arc<Export>) {
        self.list().retain(|other| !Arc::ptr_eq(other, export));
    }

    /// The same if nobody has chosen it. Under the lock, as [`Exports::visit`].
    pub(super) fn remove_unused(&self, export: &Arc<Export>) -> bool {
        let mut list = self.list();
        let is_unused = export.clients.count() == 0;
        if is_unused {
            list.retain(|other| !Arc::ptr_eq(other, export));
        }
        is_unused
    }
}
