//! `throttle-group`: the object whose limits `throttle` nodes share, as `--object` and
//! `object-add` take it.
//!
//! A limit is `limits.KEY` or `x-KEY`, with `KEY` one of `{bps,iops}-{total,read,write}`
//! followed by nothing, `-max` or `-max-length`, or `iops-size`. Numbers are plain integers.
//! Both spellings may be mixed, but not for one and the same limit: which of them QEMU takes
//! is a matter of chance.

use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval;
use crate::opts::check_id;
use crate::visit::{Leaves, Reader, opts_number};

/// Largest rate, in bytes or operations a second, and largest burst in all.
pub const MAX_RATE: u64 = 1_000_000_000_000_000;

/// A group to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThrottleGroupOptions {
    /// Its id.
    pub id: String,
    /// Its limits.
    pub limits: Limits,
}

/// Limits that go together. All are zero, which is none, by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    buckets: [Bucket; 6],
    iops_size: u64,
}

/// One limit: what flows in and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes or operations a second; 0 is no limit.
    pub rate: u64,
    /// Bytes or operations a second in a burst; 0 is no burst.
    pub burst_rate: u64,
    /// Length of a burst in seconds, at least 1.
    pub burst_seconds: u32,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            rate: 0,
            burst_rate: 0,
            burst_seconds: 1,
        }
    }
}

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Operations.
    Operations,
}

/// Which requests a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// All.
    Total,
    /// Those that read.
    Read,
    /// Those that write, discards included.
    Write,
}

/// A bucket's place, and the part of it that a key sets.
#[derive(Clone, Copy)]
enum Part {
    Rate(usize),
    BurstRate(usize),
    BurstSeconds(usize),
    IopsSize,
}

/// Bytes before operations, as QEMU checks them.
const fn place(unit: Unit, direction: Direction) -> usize {
    let unit = match unit {
        Unit::Bytes => 0,
        Unit::Operations => 3,
    };
    unit + match direction {
        Direction::Total => 0,
        Direction::Read => 1,
        Direction::Write => 2,
    }
}

/// Every key in both spellings, in the order of QEMU's schema.
const KEYS: [(&str, &str, Part); 19] = [
    (
        "iops-total",
        "x-iops-total",
        Part::Rate(place(Unit::Operations, Direction::Total)),
    ),
    (
        "iops-total-max",
        "x-iops-total-max",
        Part::BurstRate(place(Unit::Operations, Direction::Total)),
    ),
    (
        "iops-total-max-length",
        "x-iops-total-max-length",
        Part::BurstSeconds(place(Unit::Operations, Direction::Total)),
    ),
    (
        "iops-read",
        "x-iops-read",
        Part::Rate(place(Unit::Operations, Direction::Read)),
    ),
    (
        "iops-read-max",
        "x-iops-read-max",
        Part::BurstRate(place(Unit::Operations, Direction::Read)),
    ),
    (
        "iops-read-max-length",
        "x-iops-read-max-length",
        Part::BurstSeconds(place(Unit::Operations, Direction::Read)),
    ),
    (
        "iops-write",
        "x-iops-write",
        Part::Rate(place(Unit::Operations, Direction::Write)),
    ),
    (
        "iops-write-max",
        "x-iops-write-max",
        Part::BurstRate(place(Unit::Operations, Direction::Write)),
    ),
    (
        "iops-write-max-length",
        "x-iops-write-max-length",
        Part::BurstSeconds(place(Unit::Operations, Direction::Write)),
    ),
    (
        "bps-total",
        "x-bps-total",
        Part::Rate(place(Unit::Bytes, Direction::Total)),
    ),
    (
        "bps-total-max",
        "x-bps-total-max",
        Part::BurstRate(place(Unit::Bytes, Direction::Total)),
    ),
    (
        "bps-total-max-length",
        "x-bps-total-max-length",
        Part::BurstSeconds(place(Unit::Bytes, Direction::Total)),
    ),
    (
        "bps-read",
        "x-bps-read",
        Part::Rate(place(Unit::Bytes, Direction::Read)),
    ),
    (
        "bps-read-max",
        "x-bps-read-max",
        Part::BurstRate(place(Unit::Bytes, Direction::Read)),
    ),
    (
        "bps-read-max-length",
        "x-bps-read-max-length",
        Part::BurstSeconds(place(Unit::Bytes, Direction::Read)),
    ),
    (
        "bps-write",
        "x-bps-write",
        Part::Rate(place(Unit::Bytes, Direction::Write)),
    ),
    (
        "bps-write-max",
        "x-bps-write-max",
        Part::BurstRate(place(Unit::Bytes, Direction::Write)),
    ),
    (
        "bps-write-max-length",
        "x-bps-write-max-length",
        Part::BurstSeconds(place(Unit::Bytes, Direction::Write)),
    ),
    ("iops-size", "x-iops-size", Part::IopsSize),
];

impl ThrottleGroupOptions {
    /// Reads the argument of `--object`, in either form.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn parse(text: &str) -> Result<Self> {
        let options = keyval::parse(text, Some("qom-type"))?;
        Self::read(Reader::of(&options))
    }

    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self> {
        let kind = reader.required("qom-type", Reader::text)?;
        if kind != "throttle-group" {
            return Err(unknown_object(kind));
        }
        let id = reader.required("id", Reader::text)?;
        Self::read_members(reader, id)
    }

    /// Reads what comes behind `qom-type` and `id`.
    pub(crate) fn read_members(mut reader: Reader<'_>, id: String) -> Result<Self> {
        let mut given = [None; KEYS.len()];
        if let Some(mut limits) = reader.object("limits")? {
            for ((key, _, _), given) in KEYS.iter().zip(&mut given) {
                *given = limits.signed(key)?;
            }
            limits.finish()?;
        }
        let mut properties = [None; KEYS.len()];
        for ((_, key, _), given) in KEYS.iter().zip(&mut properties) {
            *given = reader.signed(key)?;
        }
        reader.finish()?;
        check_id(&id)?;
        let mut limits = Limits::default();
        for (index, (key, property, part)) in KEYS.iter().enumerate() {
            match (given[index], properties[index]) {
                (None, None) => {}
                (Some(value), None) => limits.set(key, *part, value)?,
                (None, Some(value)) => limits.set_property(property, *part, value)?,
                (Some(_), Some(_)) => {
                    return Err(OptionError::LimitTwice { key, property });
                }
            }
        }
        limits.check()?;
        Ok(Self { id, limits })
    }
}

/// The objects of qemu-storage-daemon that are not here.
const UNSUPPORTED_OBJECTS: &[&str] = &[
    "authz-list",
    "authz-listfile",
    "authz-pam",
    "authz-simple",
    "iothread",
    "main-loop",
    "secret",
    "secret_keyring",
    "tls-cipher-suites",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

fn unknown_object(kind: String) -> OptionError {
    if UNSUPPORTED_OBJECTS.contains(&kind.as_str()) {
        OptionError::UnsupportedObject { kind }
    } else {
        OptionError::BadValue {
            name: "qom-type".to_owned(),
            value: kind,
        }
    }
}

impl Limits {
    /// The bucket of these requests.
    #[must_use]
    pub fn bucket(&self, unit: Unit, direction: Direction) -> Bucket {
        self.buckets[place(unit, direction)]
    }

    /// A request above so many bytes counts as more than one operation; 0: never.
    #[must_use]
    pub fn iops_size(&self) -> u64 {
        self.iops_size
    }

    /// Takes the limits of a `-drive` out of its flat options: `throttling.KEY`, where a number
    /// of 2^63 or more is a negative one. They are yet to be checked.
    pub(crate) fn take_from_drive(options: &mut Map<String, Value>) -> Result<Self> {
        let mut limits = Self::default();
        for (key, _, part) in &KEYS {
            let path = format!("throttling.{key}");
            if let Some(Value::String(text)) = options.remove(&path) {
                limits.set(key, *part, opts_number(&path, &text)?.cast_signed())?;
            }
        }
        Ok(limits)
    }

    /// Names of all limits, for a help text.
    pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
        KEYS.iter().map(|(key, _, _)| *key)
    }

    /// These limits with some changed, as `qom-set` of `limits` does it: what is not given
    /// stays.
    ///
    /// # Errors
    ///
    /// See [`OptionError`].
    pub fn changed(&self, value: &Value) -> Result<Self> {
        let mut arguments = Map::new();
        arguments.insert("limits".to_owned(), value.clone());
        let mut whole = Reader::new(&arguments, Leaves::Typed);
        let mut reader = whole.required("limits", Reader::object)?;
        let mut limits = *self;
        let mut given = [None; KEYS.len()];
        for ((key, _, _), given) in KEYS.iter().zip(&mut given) {
            *given = reader.signed(key)?;
        }
        reader.finish()?;
        for ((key, _, part), given) in KEYS.iter().zip(given) {
            if let Some(value) = given {
                limits.set(key, *part, value)?;
            }
        }
        limits.check()?;
        Ok(limits)
    }

    /// The limits as `qom-get` of `limits` shows them: all of them.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let value = |part: Part| match part {
            Part::Rate(place) => self.buckets[place].rate,
            Part::BurstRate(place) => self.buckets[place].burst_rate,
            Part::BurstSeconds(place) => self.buckets[place].burst_seconds.into(),
            Part::IopsSize => self.iops_size,
        };
        KEYS.iter()
            .map(|(key, _, part)| ((*key).to_owned(), Value::from(value(*part))))
            .collect()
    }

    fn set(&mut self, key: &'static str, part: Part, value: i64) -> Result<()> {
        match part {
            Part::Rate(place) => self.buckets[place].rate = rate(value)?,
            Part::BurstRate(place) => self.buckets[place].burst_rate = rate(value)?,
            Part::BurstSeconds(place) => {
                self.buckets[place].burst_seconds =
                    u32::try_from(value).map_err(|_| OptionError::BurstLengthRange {
                        name: key.to_owned(),
                    })?;
            }
            Part::IopsSize => {
                self.iops_size = u64::try_from(value)
                    .map_err(|_| OptionError::OutOfRange { name: key, value })?;
            }
        }
        Ok(())
    }

    fn set_property(&mut self, property: &'static str, part: Part, value: i64) -> Result<()> {
        if value < 0 {
            return Err(OptionError::NegativeProperty);
        }
        self.set(property, part, value)
            .map_err(|error| match error {
                OptionError::BurstLengthRange { name } => {
                    OptionError::PropertyBurstLengthRange { name }
                }
                other => other,
            })
    }

    /// Checks what goes together, in QEMU's order.
    pub(crate) fn check(&self) -> Result<()> {
        let both = |amount: fn(&Bucket) -> u64| {
            self.buckets
                .chunks(3)
                .any(|kind| amount(&kind[0]) != 0 && kind[1..].iter().any(|part| amount(part) != 0))
        };
        if both(|bucket| bucket.rate) || both(|bucket| bucket.burst_rate) {
            return Err(OptionError::TotalAndPart);
        }
        let counts = self.buckets[3..].iter().any(|bucket| bucket.rate != 0);
        if self.iops_size != 0 && !counts {
            return Err(OptionError::IopsSizeAlone);
        }
        self.buckets.iter().try_for_each(Bucket::check)
    }
}

/// A negative rate is one that is too large, to QEMU.
fn rate(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| OptionError::RateOutOfRange)
}

impl Bucket {
    fn check(&self) -> Result<()> {
        if self.rate > MAX_RATE || self.burst_rate > MAX_RATE {
            Err(OptionError::RateOutOfRange)
        } else if self.burst_seconds == 0 {
            Err(OptionError::BurstLengthZero)
        } else if self.burst_seconds > 1 && self.burst_rate == 0 {
            Err(OptionError::BurstLengthAlone)
        } else if self.burst_rate.saturating_mul(self.burst_seconds.into()) > MAX_RATE {
            Err(OptionError::BurstTooLong)
        } else if self.burst_rate != 0 && self.rate == 0 {
            Err(OptionError::BurstAlone)
        } else if self.burst_rate != 0 && self.burst_rate < self.rate {
            Err(OptionError::BurstBelowRate)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn error(text: &str) -> String {
        let text = format!("throttle-group,id=g,{text}");
        ThrottleGroupOptions::parse(&text)
            .map(|group| panic!("{text} gave {group:?}"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn every_key_goes_to_its_place_in_both_spellings() {
        for (index, (key, property, _)) in KEYS.iter().enumerate() {
            // A rate below a burst; no total beside its parts.
            let kind = key.trim_end_matches("-max-length").trim_end_matches("-max");
            let rest = if *key == "iops-size" {
                ",limits.iops-read=1".to_owned()
            } else if key.ends_with("-max") {
                format!(",limits.{kind}=1")
            } else if key.ends_with("-length") {
                format!(",limits.{kind}=1,limits.{kind}-max=1")
            } else {
                String::new()
            };
            let value = 10 + index;
            for name in [format!("limits.{key}"), (*property).to_owned()] {
                let text = format!("throttle-group,id=g,{name}={value}{rest}");
                let group = ThrottleGroupOptions::parse(&text).unwrap();
                assert_eq!(group.limits.to_json()[*key], json!(value), "{text}");
            }
        }
        let group = ThrottleGroupOptions::parse(
            "throttle-group,id=g,limits.bps-write=5,limits.bps-write-max=6,x-iops-size=3,\
             x-iops-total=4,limits.bps-write-max-length=7",
        )
        .unwrap();
        let wanted = Bucket {
            rate: 5,
            burst_rate: 6,
            burst_seconds: 7,
        };
        assert_eq!(group.limits.bucket(Unit::Bytes, Direction::Write), wanted);
        assert_eq!(
            group.limits.bucket(Unit::Bytes, Direction::Total),
            Bucket::default()
        );
        assert_eq!(group.limits.iops_size(), 3);
    }

    /// Each of these was given to qemu-storage-daemon, but for the last group.
    #[test]
    fn errors_are_those_of_qemu() {
        let range = "bps/iops/max values must be within [0, 1000000000000000]";
        let both = "bps/iops/max total values and read/write values cannot be used at the same \
                    time";
        for (text, wanted) in [
            (
                "limits.bps-total=1M",
                "Parameter 'limits.bps-total' expects integer",
            ),
            ("x-bps-total=1M", "Parameter 'x-bps-total' expects integer"),
            ("x-bps-total=-1", "Property values cannot be negative"),
            ("limits.bps-total=-1", range),
            (
                "limits.bps-total-max-length=4294967296",
                "bps-total-max-length value must be in the range [0, 4294967295]",
            ),
            (
                "x-bps-total-max-length=4294967296",
                "x-bps-total-max-length value must be in therange [0, 4294967295]",
            ),
            ("limits.bogus=1", "Parameter 'limits.bogus' is unexpected"),
            ("x-bogus=1", "Parameter 'x-bogus' is unexpected"),
            (
                "limits=1",
                "Invalid parameter type for 'limits', expected: object",
            ),
            ("limits.bps-total=5,x-bps-read=5", both),
            (
                "limits.iops-size=5",
                "iops size requires an iops value to be set",
            ),
            ("limits.bps-total=1000000000000001", range),
            (
                "limits.bps-total-max-length=0",
                "the burst length cannot be 0",
            ),
            (
                "limits.bps-total-max-length=2",
                "burst length set without burst rate",
            ),
            (
                "limits.bps-total-max=2",
                "bps_max/iops_max require corresponding bps/iops values",
            ),
            (
                "limits.bps-total=3,limits.bps-total-max=2",
                "bps_max/iops_max cannot be lower than bps/iops",
            ),
            (
                "limits.bps-total=3,limits.bps-total-max=1000000000000000,\
                 limits.bps-total-max-length=2",
                "burst length too high for this burst rate",
            ),
            // Our own: QEMU takes either of two, and keeps numbers that mean nothing.
            (
                "limits.bps-total=5,x-bps-total=5",
                "Parameters 'limits.bps-total' and 'x-bps-total' set the same limit; leave one \
                 of them out",
            ),
            (
                "limits.iops-size=-5,limits.iops-total=5",
                "Value '-5' is out of range for parameter 'iops-size'",
            ),
        ] {
            assert_eq!(error(text), wanted, "{text}");
        }
        for (text, wanted) in [
            ("throttle-group", "Parameter 'id' is missing"),
            (
                "bogus,id=g",
                "Parameter 'qom-type' does not accept value 'bogus'",
            ),
            (
                "secret,id=g",
                "Object type 'secret' is not supported by ringback; there is only throttle-group",
            ),
        ] {
            let found = ThrottleGroupOptions::parse(text).unwrap_err();
            assert_eq!(found.to_string(), wanted, "{text}");
        }
        let found = ThrottleGroupOptions::parse("throttle-group,id=1").unwrap_err();
        assert_eq!(found, OptionError::InvalidId);
    }

    #[test]
    fn limits_are_merged_and_checked_as_a_whole() {
        let group = ThrottleGroupOptions::parse("throttle-group,id=g,limits.bps-total=5").unwrap();
        let change = |arguments: Value| group.limits.changed(&arguments);
        let changed = change(json!({"iops-read": 3})).unwrap();
        assert_eq!(changed.bucket(Unit::Bytes, Direction::Total).rate, 5);
        assert_eq!(changed.bucket(Unit::Operations, Direction::Read).rate, 3);
        assert_eq!(
            change(json!({"bps-read": 3})),
            Err(OptionError::TotalAndPart)
        );
    }

    proptest! {
        #[test]
        fn any_numbers_are_limits_or_an_error(values in prop::collection::vec(any::<i64>(), 19)) {
            let arguments: Map<_, _> = KEYS
                .iter()
                .zip(values)
                .map(|((key, _, _), value)| ((*key).to_owned(), Value::from(value)))
                .collect();
            let _ = Limits::default().changed(&arguments.into());
        }
    }
}
