//! Signals that ask for an end in good order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SigSet, Signal};

/// Knows whether the end was asked for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicI32>);

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP for this process. To be called before
    /// there is another thread: each has to leave these signals alone. The second
    /// signal ends the process at once, for a target that does not answer.
    pub(crate) fn listen() -> Result<Self, String> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            signals.add(signal);
        }
        // Who was started by nohup is to outlive the terminal.
        if !is_ignored(Signal::SIGHUP) {
            signals.add(Signal::SIGHUP);
        }
        signals
            .thread_block()
            .map_err(|errno| format!("cannot hold signals back: {}", errno.desc()))?;
        let interrupt = Self::default();
        let asked = Arc::clone(&interrupt.0);
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                if asked.swap(signal as i32, Ordering::SeqCst) != 0 {
                    std::process::exit(128 + signal as i32);
                }
            }
        });
        Ok(interrupt)
    }

    /// The signal that asked for the end, if one has.
    pub(crate) fn asked(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::SeqCst))
            .ok()
            .filter(|&signal| signal != 0)
    }
}

/// Whether whoever started this process has made it deaf to a signal.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}
