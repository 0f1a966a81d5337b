//! How much may pass in a second, and what limits make sense. The texts and
//! the order of the checks are QEMU's.

/// The largest rate, burst rate or burst.
const VALUE_MAX: u64 = 1_000_000_000_000_000;

/// One limit: of bytes or of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run, in units a second; 0: unlimited.
    pub avg: u64,
    /// In a burst, in units a second; 0: there are no bursts.
    pub max: u64,
    /// How long a burst may be, in seconds.
    pub max_length: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            avg: 0,
            max: 0,
            max_length: 1,
        }
    }
}

/// One limit for all requests and one for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Reads and changes together.
    pub total: Rate,
    /// Reads.
    pub read: Rate,
    /// Writes, zero writes and discards.
    pub write: Rate,
}

impl Rates {
    /// In the order in which they are checked.
    pub(super) fn all(&self) -> [Rate; 3] {
        [self.total, self.read, self.write]
    }

    fn is_contradictory(&self) -> bool {
        let both = |pick: fn(&Rate) -> u64| {
            pick(&self.total) > 0 && (pick(&self.read) > 0 || pick(&self.write) > 0)
        };
        both(|rate| rate.avg) || both(|rate| rate.max)
    }
}

/// The limits of a group. A number that was negative is out of range as well:
/// whoever parses passes `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second.
    pub bps: Rates,
    /// Operations a second.
    pub iops: Rates,
    /// A request larger than this many bytes counts as several operations;
    /// 0: never.
    pub iops_size: u64,
}

/// Why limits make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Only one of the two kinds.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndEach,
    /// It would do nothing.
    #[error("iops size requires an iops value to be set")]
    SizeWithoutIops,
    /// Too large, or negative.
    #[error("bps/iops/max values must be within [0, {VALUE_MAX}]")]
    Range,
    /// A burst takes at least a second.
    #[error("the burst length cannot be 0")]
    NoLength,
    /// No burst has no length.
    #[error("burst length set without burst rate")]
    LengthWithoutMax,
    /// The burst as a whole is too large.
    #[error("burst length too high for this burst rate")]
    BurstTooLong,
    /// A burst of something unlimited.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    MaxWithoutAvg,
    /// A burst is faster than the rest.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    MaxBelowAvg,
}

impl Rate {
    fn check(&self) -> Result<(), LimitsError> {
        if self.avg > VALUE_MAX || self.max > VALUE_MAX {
            return Err(LimitsError::Range);
        }
        if self.max_length == 0 {
            return Err(LimitsError::NoLength);
        }
        if self.max_length > 1 && self.max == 0 {
            return Err(LimitsError::LengthWithoutMax);
        }
        let burst = self.max.checked_mul(self.max_length);
        if burst.is_none_or(|burst| burst > VALUE_MAX) {
            return Err(LimitsError::BurstTooLong);
        }
        if self.max > 0 && self.avg == 0 {
            return Err(LimitsError::MaxWithoutAvg);
        }
        if self.max > 0 && self.max < self.avg {
            return Err(LimitsError::MaxBelowAvg);
        }
        Ok(())
    }
}

impl Limits {
    /// Whether the limits make sense together.
    ///
    /// # Errors
    ///
    /// [`LimitsError`], the first one in QEMU's order.
    pub fn check(&self) -> Result<(), LimitsError> {
        if self.bps.is_contradictory() || self.iops.is_contradictory() {
            return Err(LimitsError::TotalAndEach);
        }
        if self.iops_size > 0 && self.iops.all().iter().all(|rate| rate.avg == 0) {
            return Err(LimitsError::SizeWithoutIops);
        }
        let rates = self.bps.all().into_iter().chain(self.iops.all());
        rates.into_iter().try_for_each(|rate| rate.check())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(avg: u64, max: u64, max_length: u64) -> Rate {
        Rate {
            avg,
            max,
            max_length,
        }
    }

    fn total(total: Rate) -> Limits {
        Limits {
            bps: Rates {
                total,
                ..Rates::default()
            },
            ..Limits::default()
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_order() {
        let check = |limits: Limits| limits.check();
        assert_eq!(check(Limits::default()), Ok(()));
        assert_eq!(check(total(rate(1000, 1000, 1))), Ok(()));
        let mut both = total(rate(1, 0, 0));
        both.bps.write.avg = 1;
        assert_eq!(check(both), Err(LimitsError::TotalAndEach));
        let mut bursts = total(rate(0, 1, 1));
        bursts.bps.read.max = 1;
        assert_eq!(check(bursts), Err(LimitsError::TotalAndEach));
        let mut mixed = total(rate(1, 0, 1));
        mixed.iops.read.avg = 1;
        assert_eq!(check(mixed), Ok(()));
        let mut sized = total(rate(1, 0, 0));
        sized.iops_size = 4096;
        assert_eq!(check(sized), Err(LimitsError::SizeWithoutIops));
        for (avg, max, length, error) in [
            (VALUE_MAX + 1, 0, 0, LimitsError::Range),
            (u64::MAX, 0, 1, LimitsError::Range),
            (0, VALUE_MAX + 1, 1, LimitsError::Range),
            (0, 0, 0, LimitsError::NoLength),
            (0, 0, 2, LimitsError::LengthWithoutMax),
            (0, VALUE_MAX, 2, LimitsError::BurstTooLong),
            (0, VALUE_MAX, u64::MAX, LimitsError::BurstTooLong),
            (0, 5, 1, LimitsError::MaxWithoutAvg),
            (6, 5, 2, LimitsError::MaxBelowAvg),
        ] {
            assert_eq!(check(total(rate(avg, max, length))), Err(error));
        }
        assert_eq!(
            LimitsError::Range.to_string(),
            "bps/iops/max values must be within [0, 1000000000000000]"
        );
    }
}
