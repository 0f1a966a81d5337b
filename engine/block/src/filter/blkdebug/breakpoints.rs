//! Where requests are held up, and which ones are.

use crate::event::Event;

/// What somebody who watches is told. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request has met the breakpoint with this tag.
    Suspended(String),
    /// It may go on.
    Resuming(String),
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Suspended(tag) => write!(f, "blkdebug: Suspended request '{tag}'"),
            Self::Resuming(tag) => write!(f, "blkdebug: Resuming request '{tag}'"),
        }
    }
}

/// One hold on a request; a request may have several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HoldId(u64);

/// Breakpoints and holds, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    set: Vec<(Event, String)>,
    holds: Vec<(HoldId, String)>,
    next: u64,
}

impl Breakpoints {
    pub(super) fn set(&mut self, event: Event, tag: String) {
        self.set.push((event, tag));
    }

    /// A request passes: every breakpoint there, the newest first, holds it and
    /// is used up.
    pub(super) fn hit(&mut self, event: Event) -> Vec<(HoldId, String)> {
        let mut hit = Vec::new();
        self.set.retain(|(at, tag)| {
            let is_hit = *at == event;
            if is_hit {
                hit.push(tag.clone());
            }
            !is_hit
        });
        let held: Vec<(HoldId, String)> = hit
            .into_iter()
            .rev()
            .map(|tag| {
                self.next += 1;
                (HoldId(self.next), tag)
            })
            .collect();
        self.holds.extend(held.iter().cloned());
        held
    }

    pub(super) fn is_held(&self, ids: &[HoldId]) -> bool {
        self.holds.iter().any(|(id, _)| ids.contains(id))
    }

    pub(super) fn is_suspended(&self, tag: &str) -> bool {
        self.holds.iter().any(|(_, other)| other == tag)
    }

    /// Lets the request go that was held last. False: there is none.
    pub(super) fn resume(&mut self, tag: &str) -> bool {
        match self.holds.iter().rposition(|(_, other)| other == tag) {
            Some(index) => {
                self.holds.remove(index);
                true
            }
            None => false,
        }
    }

    /// Removes breakpoints. False: there was none.
    pub(super) fn remove(&mut self, tag: &str) -> bool {
        let before = self.set.len();
        self.set.retain(|(_, other)| other != tag);
        self.set.len() < before
    }

    /// A request is no more.
    pub(super) fn forget(&mut self, ids: &[HoldId]) {
        self.holds.retain(|(id, _)| !ids.contains(id));
    }

    /// No breakpoint is left; answers the tags of all that were held.
    pub(super) fn clear(&mut self) -> Vec<String> {
        self.set.clear();
        let holds = std::mem::take(&mut self.holds);
        holds.into_iter().rev().map(|(_, tag)| tag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_breakpoints_of_an_event_hold_a_request_the_newest_first() {
        let mut breakpoints = Breakpoints::default();
        breakpoints.set(Event::WriteAio, "A".into());
        breakpoints.set(Event::ReadAio, "R".into());
        breakpoints.set(Event::WriteAio, "B".into());
        let held = breakpoints.hit(Event::WriteAio);
        let tags: Vec<&str> = held.iter().map(|(_, tag)| tag.as_str()).collect();
        assert_eq!(tags, ["B", "A"]);
        assert!(breakpoints.hit(Event::WriteAio).is_empty(), "used up");
        let ids: Vec<HoldId> = held.iter().map(|&(id, _)| id).collect();
        assert!(breakpoints.resume("A") && breakpoints.is_held(&ids));
        assert!(!breakpoints.resume("A"));
        assert!(breakpoints.resume("B") && !breakpoints.is_held(&ids));
        assert!(breakpoints.remove("R") && !breakpoints.remove("R"));
    }

    #[test]
    fn the_request_held_last_goes_first() {
        let mut breakpoints = Breakpoints::default();
        breakpoints.set(Event::ReadAio, "A".into());
        let [(first, _)] = breakpoints.hit(Event::ReadAio)[..] else {
            panic!("one hold");
        };
        breakpoints.set(Event::ReadAio, "A".into());
        let [(second, _)] = breakpoints.hit(Event::ReadAio)[..] else {
            panic!("one hold");
        };
        assert!(breakpoints.resume("A"));
        assert!(breakpoints.is_held(&[first]) && !breakpoints.is_held(&[second]));
        breakpoints.forget(&[first]);
        assert!(!breakpoints.is_suspended("A"));
    }
}
