//! Which requests fail: a list of rules and a state that events move.
//!
//! An event makes its `inject-error` rules active, in the place of those that
//! were; if it has none for the present state, the active ones stay. Only then
//! does it change the state.

use crate::event::Event;
use crate::filter::blkdebug::options::{InjectError, IoType, SetState};
use crate::span::Span;
use crate::units::SECTOR;

/// The rules of one filter and where they stand.
#[derive(Debug)]
pub(super) struct Rules {
    state: i64,
    /// None: it was for once.
    inject: Vec<Option<InjectError>>,
    set_state: Vec<SetState>,
    /// Positions in `inject`, in ascending order.
    active: Vec<usize>,
}

/// What a request answers in the place of doing something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Injection {
    /// Above zero.
    pub(super) errno: i32,
    pub(super) immediately: bool,
}

fn applies(wanted: i64, state: i64) -> bool {
    wanted == 0 || wanted == state
}

impl InjectError {
    fn fits(&self, io_type: IoType, span: Span) -> bool {
        let is_kind = match self.io_type {
            Some(wanted) => wanted == io_type,
            None => io_type != IoType::BlockStatus,
        };
        is_kind
            && self.sector.is_none_or(|sector| {
                sector
                    .checked_mul(SECTOR)
                    .is_some_and(|at| span.offset <= at && at < span.end())
            })
    }
}

impl Rules {
    pub(super) fn new(inject: Vec<InjectError>, set_state: Vec<SetState>) -> Self {
        Self {
            state: 1,
            inject: inject.into_iter().map(Some).collect(),
            set_state,
            active: Vec::new(),
        }
    }

    /// An event happens.
    pub(super) fn fire(&mut self, event: Event) {
        let matching: Vec<usize> = (0..self.inject.len())
            .filter(|&index| {
                self.inject[index]
                    .as_ref()
                    .is_some_and(|rule| rule.event == event && applies(rule.state, self.state))
            })
            .collect();
        if !matching.is_empty() {
            self.active = matching;
        }
        let change = self
            .set_state
            .iter()
            .find(|rule| rule.event == event && applies(rule.state, self.state));
        if let Some(rule) = change {
            self.state = rule.new_state;
        }
    }

    /// What this request answers, if it shall fail. A flush has an empty span.
    pub(super) fn pick(&mut self, io_type: IoType, span: Span) -> Option<Injection> {
        let index = self.active.iter().copied().find(|&index| {
            self.inject[index]
                .as_ref()
                .is_some_and(|rule| rule.fits(io_type, span))
        })?;
        let rule = self.inject[index].as_ref()?;
        if rule.errno <= 0 {
            return None;
        }
        let injection = Injection {
            errno: rule.errno,
            immediately: rule.immediately,
        };
        if rule.once {
            self.inject[index] = None;
            self.active.retain(|&active| active != index);
        }
        Some(injection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOMEWHERE: Span = Span {
        offset: 0,
        len: 4096,
    };

    fn inject(event: Event, change: impl FnOnce(&mut InjectError)) -> InjectError {
        let mut rule = InjectError::new(event);
        change(&mut rule);
        rule
    }

    fn errno(rules: &mut Rules, io_type: IoType) -> i32 {
        rules
            .pick(io_type, SOMEWHERE)
            .map_or(0, |found| found.errno)
    }

    #[test]
    fn a_rule_waits_for_its_event_and_then_stays() {
        let mut rules = Rules::new(vec![InjectError::new(Event::WriteAio)], vec![]);
        assert_eq!(errno(&mut rules, IoType::Write), 0);
        rules.fire(Event::ReadAio);
        assert_eq!(errno(&mut rules, IoType::Write), 0);
        rules.fire(Event::WriteAio);
        rules.fire(Event::ReadAio);
        for kind in [
            IoType::Read,
            IoType::Write,
            IoType::WriteZeroes,
            IoType::Discard,
            IoType::Flush,
        ] {
            assert_eq!(errno(&mut rules, kind), 5);
        }
        assert_eq!(errno(&mut rules, IoType::BlockStatus), 0);
    }

    #[test]
    fn an_event_with_rules_replaces_the_active_ones() {
        let mut rules = Rules::new(
            vec![
                inject(Event::WriteAio, |rule| rule.errno = 28),
                inject(Event::ReadAio, |rule| rule.errno = 0),
            ],
            vec![],
        );
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 28);
        rules.fire(Event::ReadAio);
        assert_eq!(errno(&mut rules, IoType::Write), 0);
    }

    #[test]
    fn the_first_rule_that_fits_decides_even_for_success() {
        let rules = vec![
            inject(Event::None, |rule| {
                (rule.errno, rule.io_type) = (0, Some(IoType::Read));
            }),
            inject(Event::None, |rule| rule.errno = 7),
            inject(Event::None, |rule| rule.errno = 8),
        ];
        let mut rules = Rules::new(rules, vec![]);
        rules.fire(Event::None);
        assert_eq!(errno(&mut rules, IoType::Read), 0);
        assert_eq!(errno(&mut rules, IoType::Write), 7);
    }

    #[test]
    fn a_state_is_left_after_all_rules_of_the_event() {
        let set = |event, state, new_state| SetState {
            event,
            state,
            new_state,
        };
        let mut rules = Rules::new(
            vec![
                inject(Event::WriteAio, |rule| (rule.state, rule.errno) = (1, 11)),
                inject(Event::WriteAio, |rule| (rule.state, rule.errno) = (2, 12)),
            ],
            vec![
                set(Event::WriteAio, 1, 2),
                // The first that matches wins.
                set(Event::WriteAio, 0, 3),
            ],
        );
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 11);
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 12);
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 12, "no rule in state 3");
    }

    #[test]
    fn once_is_once_for_each_rule() {
        let once = |errno| {
            inject(Event::WriteAio, |rule| {
                (rule.once, rule.errno) = (true, errno);
            })
        };
        let mut rules = Rules::new(vec![once(5), once(6)], vec![]);
        rules.fire(Event::WriteAio);
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 5);
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 6);
        rules.fire(Event::WriteAio);
        assert_eq!(errno(&mut rules, IoType::Write), 0);
    }

    #[test]
    fn a_sector_must_be_touched() {
        let mut rules = Rules::new(
            vec![
                inject(Event::None, |rule| rule.sector = Some(3)),
                inject(Event::None, |rule| rule.sector = Some(u64::MAX)),
            ],
            vec![],
        );
        rules.fire(Event::None);
        let mut fails = |offset, len| rules.pick(IoType::Read, Span::new(offset, len)).is_some();
        assert!(fails(1536, 512) && fails(1536, 1) && fails(0, 1537));
        assert!(!fails(0, 1536) && !fails(1537, 511) && !fails(1536, 0));
    }
}
