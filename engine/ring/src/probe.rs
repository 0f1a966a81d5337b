//! What the kernel offers, what is used of it, and why io_uring might not work.
//!
//! The oldest kernel that ringback runs on is Linux 5.15 (plain io_uring with a
//! timeout on the wait). Everything newer is a feature: probed at start, used
//! where it is there, and masked on request so that the paths for older kernels
//! can be tested on a new one.

use std::fmt;
use std::str::FromStr;

use nix::libc;

use crate::uring;

/// An io_uring feature that ringback uses when it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// One thread submits: cheaper locking in the kernel (Linux 6.0).
    SingleIssuer,
    /// Completions are prepared when the shard asks, not by interrupting it
    /// (Linux 6.1). Needs `SingleIssuer`.
    DeferTaskrun,
    /// Files are registered once instead of looked up at each request (5.19).
    FixedFiles,
    /// Buffers are pinned once instead of at each request (5.19).
    FixedBuffers,
    /// Shards wake each other ring to ring (5.18).
    MessageRing,
}

impl Feature {
    /// Every feature, in the order of reports.
    pub const ALL: [Self; 5] = [
        Self::SingleIssuer,
        Self::DeferTaskrun,
        Self::FixedFiles,
        Self::FixedBuffers,
        Self::MessageRing,
    ];

    /// The name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleIssuer => "single-issuer",
            Self::DeferTaskrun => "defer-taskrun",
            Self::FixedFiles => "fixed-files",
            Self::FixedBuffers => "fixed-buffers",
            Self::MessageRing => "message-ring",
        }
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|feature| feature.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|feature| feature.name()).collect();
                format!(
                    "unknown ring feature '{text}'; known are {}",
                    names.join(", ")
                )
            })
    }
}

/// A set of features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    used: [bool; Feature::ALL.len()],
}

impl Features {
    /// No feature at all: what an old kernel offers.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether a feature is in the set.
    pub fn has(&self, feature: Feature) -> bool {
        self.used[feature as usize]
    }

    pub(crate) fn remove(&mut self, feature: Feature) {
        self.used[feature as usize] = false;
    }

    fn insert(&mut self, feature: Feature) {
        self.used[feature as usize] = true;
    }

    /// Asks the kernel, one feature after the other.
    fn probed(opcodes: &[(&'static str, bool)]) -> Self {
        let mut features = Self::none();
        for feature in [Feature::SingleIssuer, Feature::DeferTaskrun] {
            features.insert(feature);
            if uring::builds_with(&features).is_err() {
                features.remove(feature);
            }
        }
        for feature in [Feature::FixedFiles, Feature::FixedBuffers] {
            if uring::has_table(feature) {
                features.insert(feature);
            }
        }
        if opcodes
            .iter()
            .any(|&(name, known)| name == "msg-ring" && known)
        {
            features.insert(Feature::MessageRing);
        }
        features
    }
}

/// io_uring cannot be used on this machine. The text says what to change.
#[derive(Clone, Debug, thiserror::Error)]
#[error("io_uring is not available: {reason}")]
pub struct Unavailable {
    reason: String,
}

impl Unavailable {
    pub(crate) fn new(error: &std::io::Error) -> Self {
        Self {
            reason: explain(error),
        }
    }
}

fn explain(error: &std::io::Error) -> String {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let sysctl = sysctl.as_deref().map_or("", str::trim);
    match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), "2") => "the sysctl kernel.io_uring_disabled is 2 (forbidden for \
            everybody); set it to 0"
            .into(),
        (Some(libc::EPERM), "1") => "the sysctl kernel.io_uring_disabled is 1 (only for the group \
            in kernel.io_uring_group and for CAP_SYS_ADMIN); set it to 0 or join that group"
            .into(),
        (Some(libc::EPERM | libc::EACCES), _) => "the kernel refused io_uring_setup although the \
            sysctl kernel.io_uring_disabled allows it; a seccomp filter of the container or of the \
            service (SystemCallFilter=) forbids it: allow io_uring_setup, io_uring_enter and \
            io_uring_register"
            .into(),
        (Some(libc::ENOSYS), _) => "this kernel has no io_uring (Linux 5.15 or newer is needed), \
            or a seccomp filter hides it: allow io_uring_setup, io_uring_enter and \
            io_uring_register"
            .into(),
        (Some(libc::ENOMEM), _) => "no memory for the ring; without CAP_IPC_LOCK it may count \
            against the limit on locked memory: raise `ulimit -l` (RLIMIT_MEMLOCK)"
            .into(),
        _ => error.to_string(),
    }
}

/// The report of `ringback daemon --version -v`.
#[derive(Clone, Debug)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// What the kernel offers.
    pub features: Features,
    /// Opcodes that ringback submits, and whether the kernel knows them.
    pub opcodes: Vec<(&'static str, bool)>,
    /// Soft limit on locked memory, which registered buffers may count against.
    pub memlock_bytes: Option<u64>,
}

/// Probes the kernel.
///
/// # Errors
///
/// [`Unavailable`] if a plain ring cannot be made.
pub fn probe() -> Result<Report, Unavailable> {
    let opcodes = uring::opcodes().map_err(|error| Unavailable::new(&error))?;
    let features = Features::probed(&opcodes);
    Ok(Report {
        kernel: kernel_release(),
        features,
        opcodes,
        memlock_bytes: memlock_bytes(),
    })
}

/// What to use: everything the kernel offers but the masked.
pub(crate) fn usable(masked: &[Feature]) -> Result<Features, Unavailable> {
    let mut features = probe()?.features;
    for &feature in masked {
        features.remove(feature);
    }
    if !features.has(Feature::SingleIssuer) {
        features.remove(Feature::DeferTaskrun);
    }
    Ok(features)
}

/// What `uname -r` says.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

fn memlock_bytes() -> Option<u64> {
    let (soft, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel: Linux {}", self.kernel)?;
        for feature in Feature::ALL {
            let answer = if self.features.has(feature) {
                "yes"
            } else {
                "no"
            };
            writeln!(f, "io_uring {}: {answer}", feature.name())?;
        }
        let missing: Vec<_> = self
            .opcodes
            .iter()
            .filter(|(_, known)| !known)
            .map(|(name, _)| *name)
            .collect();
        match missing.as_slice() {
            [] => writeln!(f, "io_uring opcodes: all that are used")?,
            names => writeln!(f, "io_uring opcodes missing: {}", names.join(", "))?,
        }
        match self.memlock_bytes {
            Some(bytes) => write!(f, "locked memory limit: {} KiB", bytes / 1024),
            None => write!(f, "locked memory limit: none"),
        }
    }
}
