//! The states of a job's life and the verbs that each of them takes. The tables
//! are QEMU's.

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exists and does nothing yet.
    Created,
    /// It works.
    Running,
    /// It stands still until it is resumed.
    Paused,
    /// Its work is done; it waits for the others of its transaction.
    Waiting,
    /// It waits for somebody to let it make its result final.
    Pending,
    /// It failed or was cancelled, and cleans up.
    Aborting,
    /// It is over; only its entry is left.
    Concluded,
    /// It is gone.
    Null,
}

impl Status {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }

    /// Whether a job may go from here to there.
    pub fn allows(self, next: Self) -> bool {
        use Status::{Aborting, Concluded, Created, Null, Paused, Pending, Running, Waiting};
        matches!(
            (self, next),
            (Created, Running | Aborting | Null)
                | (Running, Paused | Waiting | Aborting)
                | (Paused, Running)
                | (Waiting, Pending | Aborting)
                | (Pending, Aborting | Concluded)
                | (Aborting, Aborting | Concluded)
                | (Concluded, Null)
        )
    }

    /// Whether a job takes this verb here.
    pub fn accepts(self, verb: Verb) -> bool {
        match verb {
            Verb::Cancel => matches!(
                self,
                Self::Created | Self::Running | Self::Paused | Self::Waiting | Self::Pending
            ),
            Verb::Pause | Verb::Resume | Verb::SetSpeed | Verb::Change => {
                matches!(self, Self::Created | Self::Running | Self::Paused)
            }
            // Nothing that runs here has to be told when it is complete.
            Verb::Complete => false,
            Verb::Finalize => self == Self::Pending,
            Verb::Dismiss => self == Self::Concluded,
        }
    }
}

/// What somebody wants of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Give up.
    Cancel,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Be faster or slower.
    SetSpeed,
    /// Complete what is ready.
    Complete,
    /// Make the result final.
    Finalize,
    /// Go away.
    Dismiss,
    /// Work in another way.
    Change,
}

impl Verb {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "set-speed",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
            Self::Change => "change",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Status; 8] = [
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Waiting,
        Status::Pending,
        Status::Aborting,
        Status::Concluded,
        Status::Null,
    ];

    #[test]
    fn every_state_but_the_last_leads_to_the_last() {
        for start in ALL.into_iter().filter(|&status| status != Status::Null) {
            let mut reached = vec![start];
            for _ in 0..ALL.len() {
                for next in ALL {
                    if !reached.contains(&next) && reached.iter().any(|from| from.allows(next)) {
                        reached.push(next);
                    }
                }
            }
            assert!(reached.contains(&Status::Null), "{start:?}");
        }
        assert!(!ALL.into_iter().any(|next| Status::Null.allows(next)));
    }

    #[test]
    fn a_job_that_is_over_can_only_be_dismissed() {
        for verb in [Verb::Cancel, Verb::Pause, Verb::SetSpeed, Verb::Finalize] {
            assert!(!Status::Concluded.accepts(verb), "{verb:?}");
        }
        assert!(Status::Concluded.accepts(Verb::Dismiss));
    }
}
