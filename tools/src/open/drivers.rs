//! From the options of a driver to what the engine makes a node of.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use ringback_block::event::Event;
use ringback_block::filter::{blkdebug, copy_before_write, throttle};
use ringback_block::format::qcow2::{DiscardRules, OpenOptions, OverlapCheck};
use ringback_block::graph::reopen::Policy;
use ringback_block::graph::{GraphError, NodeSpec};
use ringback_block::notice::Notify;
use ringback_block::path::Treatment;
use ringback_block::request::ZeroFlags;
use ringback_qmp_shim::OptionError;
use ringback_qmp_shim::blockdev::blkdebug::{
    self as rules, InjectError, Permission, SetState, config,
};
use ringback_qmp_shim::blockdev::qcow2::ImageFacts;
use ringback_qmp_shim::blockdev::{
    BlkdebugOptions, CbwOptions, DetectZeroes, Discard, FileOptions, Locking, NullOptions,
    OnCbwError, Qcow2Options, Settings,
};
use ringback_qmp_shim::open::OpenNode;
use ringback_qmp_shim::throttle_group::{self, Direction, Unit};
use ringback_qmp_shim::visit::Word;
use ringback_ring::Shard;
use ringback_ring::file::{Cache, OpenError};
use ringback_ring::lock;

use super::Opened;

/// QEMU's default, in bytes.
const NULL_SIZE: u64 = 1 << 30;

/// The graph's texts follow QEMU, but for these.
pub(crate) fn reason(error: GraphError) -> String {
    match error {
        GraphError::Open(OpenError::WrongKind {
            path,
            what: "a directory",
        }) => format!("Could not open '{}': Is a directory", path.display()),
        GraphError::Unaligned(_) => "Cannot get 'write' permission without 'resize': Image size \
                                     is not a multiple of request alignment"
            .into(),
        error => error.to_string(),
    }
}

/// The same for a person: what helps follows on lines of its own.
pub(crate) fn reason_with_hint(error: GraphError) -> String {
    let hint = match &error {
        GraphError::Nbd(error) => error.hint(),
        _ => None,
    };
    let text = reason(error);
    match hint {
        Some(hint) => format!("{text}\n{hint}"),
        None => text,
    }
}

/// A regular file or a device of the host.
pub(super) fn file(options: &FileOptions, settings: &Settings) -> Result<NodeSpec, String> {
    if options.filename.is_empty() {
        return Err("The 'file' block driver requires a file name".into());
    }
    if options.locking == Some(Locking::Off) {
        return Err("locking=off is not supported: images are always locked".into());
    }
    Ok(file_at(&options.filename, settings))
}

pub(super) fn file_at(path: &str, settings: &Settings) -> NodeSpec {
    NodeSpec::File {
        path: PathBuf::from(path),
        write: !settings.read_only,
        cache: if settings.direct {
            Cache::Direct
        } else {
            Cache::Buffered
        },
        discard: settings.discard == Discard::Unmap,
    }
}

/// Whether the kernel lets a file be written. Anything else that is wrong with it
/// is found when it is opened.
pub(super) async fn is_writable(shard: &Shard, path: PathBuf) -> bool {
    shard
        .blocking(move || {
            let opened = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path);
            !matches!(
                opened.map_err(|error| error.raw_os_error()),
                Err(Some(
                    nix::libc::EACCES | nix::libc::EROFS | nix::libc::EPERM
                ))
            )
        })
        .await
}

/// What every node is told beside its kind. Files and images are opened
/// read-only; other nodes only refuse writers.
pub(crate) fn policy(driver: &str, settings: &Settings) -> Policy {
    let opens = matches!(driver, "file" | "host_device" | "nbd" | "qcow2");
    Policy {
        read_only: settings.read_only && !opens,
        treatment: Treatment {
            ignores_discards: settings.discard != Discard::Unmap,
            zeroes: match settings.detect_zeroes {
                DetectZeroes::Off => None,
                DetectZeroes::On => Some(ZeroFlags::KEEP),
                DetectZeroes::Unmap => Some(ZeroFlags::UNMAP),
            },
        },
        no_flush: settings.no_flush,
    }
}

pub(super) fn null(options: NullOptions) -> NodeSpec {
    NodeSpec::Null {
        size: options.size.unwrap_or(NULL_SIZE),
        latency_ns: options.latency_ns.unwrap_or(0),
        read_zeroes: options.read_zeroes.unwrap_or(false),
    }
}

/// How an image with these options is opened.
pub(crate) fn qcow2(
    options: &Qcow2Options<OpenNode>,
    settings: &Settings,
    facts: ImageFacts,
    notify: Notify,
) -> Result<OpenOptions, String> {
    options
        .check_with_image(facts)
        .map_err(|error| error.to_string())?;
    let enabled = settings.discard == Discard::Unmap;
    let mut open = OpenOptions::new(!settings.read_only);
    open.discard = DiscardRules {
        enabled,
        pass_request: options.pass_discard_request.unwrap_or(enabled),
        pass_other: options.pass_discard_other.unwrap_or(false),
        keep_clusters: options.discard_no_unref.unwrap_or(false),
    };
    open.overlap_check = overlap_check(options);
    open.lazy_refcounts = options.lazy_refcounts;
    open.l2_cache_size = options.l2_cache_size;
    open.refcount_cache_size = options.refcount_cache_size;
    open.cache_size = options.cache_size;
    open.l2_cache_entry_size = options.l2_cache_entry_size;
    if let Some(seconds) = options.cache_clean_interval {
        open.cache_clean_interval = seconds;
    }
    open.notify = notify;
    Ok(open)
}

fn overlap_check(options: &Qcow2Options<OpenNode>) -> OverlapCheck {
    let set = options.overlap_check.unwrap_or_default().settle();
    [
        ("main-header", set.main_header),
        ("active-l1", set.active_l1),
        ("active-l2", set.active_l2),
        ("refcount-table", set.refcount_table),
        ("refcount-block", set.refcount_block),
        ("snapshot-table", set.snapshot_table),
        ("inactive-l1", set.inactive_l1),
        ("inactive-l2", set.inactive_l2),
        ("bitmap-directory", set.bitmap_directory),
    ]
    .into_iter()
    .fold(OverlapCheck::NONE, |check, (name, watched)| {
        check
            .with(name, watched)
            .expect("both sides know the same structures")
    })
}

/// A filter that saves what is overwritten.
pub(super) fn copy_before_write(options: &CbwOptions<OpenNode>) -> copy_before_write::Options {
    copy_before_write::Options {
        on_cbw_error: on_cbw_error(options.on_cbw_error),
        cbw_timeout_ns: cbw_timeout_ns(options.cbw_timeout),
        min_cluster_size: options.min_cluster_size.unwrap_or(0),
        save_buffer: options.save_buffer.unwrap_or(match options.cbw_timeout {
            None | Some(0) => copy_before_write::SAVE_BUFFER_DEFAULT,
            // QEMU's limit is on the write to the target.
            Some(_) => 0,
        }),
        ..copy_before_write::Options::default()
    }
}

/// Who pays when old data cannot be saved.
pub(crate) fn on_cbw_error(asked: Option<OnCbwError>) -> copy_before_write::OnCbwError {
    match asked {
        None | Some(OnCbwError::BreakGuestWrite) => copy_before_write::OnCbwError::BreakGuestWrite,
        Some(OnCbwError::BreakSnapshot) => copy_before_write::OnCbwError::BreakSnapshot,
    }
}

/// From seconds, where 0 is for ever.
pub(crate) fn cbw_timeout_ns(seconds: Option<u32>) -> u64 {
    u64::from(seconds.unwrap_or(0)) * 1_000_000_000
}

/// Rules of the file come before those of the options.
pub(super) fn blkdebug(
    options: &BlkdebugOptions<OpenNode>,
    image: &Opened,
) -> Result<NodeSpec, String> {
    let mut inject_error = Vec::new();
    let mut set_state = Vec::new();
    if let Some(path) = &options.config {
        let rules = read_config(path)?;
        inject_error.extend(rules.inject_error.iter().copied());
        set_state.extend(rules.set_state.iter().copied());
    }
    inject_error.extend(options.inject_error.iter().copied());
    set_state.extend(options.set_state.iter().copied());
    let limits = options.limits;
    let options = blkdebug::Options {
        inject_error: inject_error.iter().map(injection).collect(),
        set_state: set_state.iter().map(state_change).collect(),
        align: limits.align.unwrap_or(0),
        max_transfer: limits.max_transfer.unwrap_or(0),
        opt_write_zero: limits.opt_write_zero.unwrap_or(0),
        max_write_zero: limits.max_write_zero.unwrap_or(0),
        opt_discard: limits.opt_discard.unwrap_or(0),
        max_discard: limits.max_discard.unwrap_or(0),
        take_child_perms: options.take_child_perms.iter().map(permission).collect(),
        unshare_child_perms: options.unshare_child_perms.iter().map(permission).collect(),
    };
    Ok(NodeSpec::BlkDebug {
        image: image.node.clone(),
        options,
    })
}

fn read_config(path: &str) -> Result<config::Rules, String> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
        format!(
            "Could not read blkdebug config file: {}",
            ringback_ring::error_text(errno)
        )
    })?;
    config::parse(&text).map_err(|error: OptionError| error.to_string())
}

/// Both sides have QEMU's names.
fn event(event: rules::Event) -> Event {
    let name = event.word();
    let mut all = Event::ALL.iter().copied();
    all.find(|candidate| candidate.name() == name)
        .expect("both sides know the same events")
}

fn injection(rule: &InjectError) -> blkdebug::InjectError {
    blkdebug::InjectError {
        state: rule.state.unwrap_or(0).into(),
        io_type: rule
            .iotype
            .and_then(|kind| blkdebug::IoType::from_name(kind.word())),
        errno: rule.errno.unwrap_or(nix::libc::EIO),
        sector: rule.sector.and_then(|sector| u64::try_from(sector).ok()),
        once: rule.once.unwrap_or(false),
        immediately: rule.immediately.unwrap_or(false),
        ..blkdebug::InjectError::new(event(rule.event))
    }
}

fn state_change(rule: &SetState) -> blkdebug::SetState {
    blkdebug::SetState {
        event: event(rule.event),
        state: rule.state.unwrap_or(0).into(),
        new_state: rule.new_state.into(),
    }
}

fn permission(permission: &Permission) -> lock::Permission {
    match permission {
        Permission::ConsistentRead => lock::Permission::ConsistentRead,
        Permission::Write => lock::Permission::Write,
        Permission::WriteUnchanged => lock::Permission::WriteUnchanged,
        Permission::Resize => lock::Permission::Resize,
    }
}

/// Both sides have the same six buckets.
pub(crate) fn limits(asked: &throttle_group::Limits) -> throttle::Limits {
    let rates = |unit| {
        let bucket = |direction| {
            let bucket = asked.bucket(unit, direction);
            throttle::Rate {
                avg: bucket.rate,
                max: bucket.burst_rate,
                max_length: bucket.burst_seconds.into(),
            }
        };
        throttle::Rates {
            total: bucket(Direction::Total),
            read: bucket(Direction::Read),
            write: bucket(Direction::Write),
        }
    };
    throttle::Limits {
        bps: rates(Unit::Bytes),
        iops: rates(Unit::Operations),
        iops_size: asked.iops_size(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_know_the_same_events_and_kinds_of_request() {
        let named: Vec<_> = rules::Event::WORDS.iter().map(|(name, _)| *name).collect();
        let known: Vec<_> = Event::ALL.iter().map(|event| event.name()).collect();
        assert_eq!(named, known);
        for (name, _) in rules::IoType::WORDS {
            assert!(blkdebug::IoType::from_name(name).is_some(), "{name}");
        }
    }
}
