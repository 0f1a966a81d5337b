//! Requests that work beside the commands, counted: who waits for them is woken
//! when one ends.

use std::cell::Cell;
use std::rc::Rc;

use ringback_ring::LocalQueue;

/// How many there are.
#[derive(Default)]
pub(crate) struct Requests {
    count: Cell<usize>,
    ended: LocalQueue,
    /// Those of all disks, if these are of one.
    all: Option<Rc<Requests>>,
}

/// One of them, until dropped.
pub(crate) struct InFlight(Rc<Requests>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Requests {
    /// Those of one disk, which count among `all`, too.
    pub(crate) fn among(all: &Rc<Self>) -> Self {
        Self {
            all: Some(Rc::clone(all)),
            ..Self::default()
        }
    }

    /// One more.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.add();
        InFlight(Rc::clone(self))
    }

    fn add(&self) {
        self.count.set(self.count.get() + 1);
        if let Some(all) = &self.all {
            all.add();
        }
    }

    fn end(&self) {
        self.count.set(self.count.get() - 1);
        self.ended.wake_all();
        if let Some(all) = &self.all {
            all.end();
        }
    }

    /// None is left.
    pub(crate) fn is_idle(&self) -> bool {
        self.count.get() == 0
    }

    /// Waits until none is left.
    pub(crate) async fn drain(&self) {
        self.ended.wait_until(|| self.is_idle()).await;
    }

    /// Waits until none is left on any disk.
    pub(crate) async fn drain_all(&self) {
        self.all.as_deref().unwrap_or(self).drain().await;
    }
}
