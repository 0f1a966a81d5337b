//! Whether a shard with nothing to do looks for work before it sleeps.
//!
//! A sleeping core takes longer to wake up than a fast device takes for a request: a
//! request is a chain of waits, for a socket, a disk and a socket again, and each would
//! cost a wake-up. Looking costs a core that others could use. So a shard looks for no
//! longer than a bound, and only after a wait that was shorter than that: one long wait
//! ends it, until a sleep turns out to have been short. Somebody else who wants the
//! core gets it, for every look gives way.

use std::cell::Cell;

/// What the last wait says about the next one.
#[derive(Debug)]
pub(crate) struct Polling {
    bound_ns: u64,
    last_was_short: Cell<bool>,
}

impl Polling {
    /// Looks for at most `bound_ns` nanoseconds; 0: it never does.
    pub(crate) fn new(bound_ns: u64) -> Self {
        Self {
            bound_ns,
            last_was_short: Cell::new(false),
        }
    }

    /// How long to look for work before the next sleep, in nanoseconds.
    pub(crate) fn patience_ns(&self) -> u64 {
        if self.last_was_short.get() {
            self.bound_ns
        } else {
            0
        }
    }

    /// There is work again, after so long without any.
    pub(crate) fn learn(&self, waited_ns: u64) {
        self.last_was_short.set(waited_ns < self.bound_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_long_as_waits_are_short() {
        let polling = Polling::new(20);
        assert_eq!(polling.patience_ns(), 0, "nothing is known yet");
        polling.learn(19);
        assert_eq!(polling.patience_ns(), 20);
        polling.learn(20);
        assert_eq!(polling.patience_ns(), 0, "it would have been in vain");
    }

    #[test]
    fn a_bound_of_zero_is_never_looked_for() {
        let polling = Polling::new(0);
        polling.learn(0);
        assert_eq!(polling.patience_ns(), 0);
    }
}
