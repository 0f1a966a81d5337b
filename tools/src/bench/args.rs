//! The command line of `ringback bench`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use ringback_block::copy::control::OnError;
use ringback_block::copy::governor::LatencyTarget;
use ringback_block::filter::copy_before_write::{
    self, CLUSTER_SIZE_DEFAULT, CLUSTER_SIZE_MAX, CbwError, OnCbwError,
};
use ringback_block::job::backup;
use ringback_qmp_shim::command_line::MAX_POLL_US;
use ringback_qmp_shim::size::parse_size;
use ringback_ring::file::Cache;
use ringback_ring::probe::Feature;
use ringback_ring::shards::{Config, DEFAULT_POLL_NS, MAX_SHARDS, available_cores};
use serde_json::{Value, json};

use super::load::AccessOrder;
use crate::latency_target::{latency_target_text, parse_latency_target};

/// Put a disk under guest load, back it up at one instant, verify, report.
///
/// Without options a disk is made in a scratch directory and removed at the end.
/// Sizes take the suffixes k, M, G, T (powers of 1024).
#[derive(Clone, Debug, ClapArgs)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// Disk to use: a raw file or a block device; without it one is made
    #[arg(long, value_name = "DISK")]
    pub(crate) source: Option<String>,
    /// Where the backup goes; without it a file is made beside the scratch disk
    #[arg(long, value_name = "DISK")]
    pub(crate) target: Option<String>,
    /// --source and --target are node options: driver=raw,file.driver=file,...
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Write to a given disk although it holds data, which is then lost
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Size of the disk to make
    #[arg(long, value_parser = parse_size, default_value = "1G")]
    pub(crate) size: u64,
    /// Scratch directory for what is made [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Page cache: auto is direct where the file system can
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) cache: CacheArg,
    /// Share of the disk that holds data, in percent; the rest are zeroes
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) fill: u8,

    /// No guest load: the backup of an idle disk
    #[arg(long, help_heading = "Guest load")]
    pub(crate) no_guest: bool,
    /// Size of a guest request
    #[arg(long, value_parser = parse_size, default_value = "4k", help_heading = "Guest load")]
    pub(crate) block: u64,
    /// Share of reads in percent; the others are writes
    #[arg(long, value_name = "PERCENT", default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "Guest load")]
    pub(crate) read_share: u8,
    /// Requests in flight of each queue
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Guest load")]
    pub(crate) depth: u32,
    /// Requests a second of all queues together; 0: as fast as the disk answers
    #[arg(long, default_value_t = 1000, help_heading = "Guest load")]
    pub(crate) rate: u32,
    /// Queues, spread over the shards [default: one a shard]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Guest load")]
    pub(crate) queues: Option<u32>,
    /// Which blocks are asked for
    #[arg(
        long,
        value_enum,
        default_value = "random",
        help_heading = "Guest load"
    )]
    pub(crate) order: OrderArg,
    /// Seconds of guest load before the point in time
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=86_400), help_heading = "Guest load")]
    pub(crate) baseline: u64,
    /// Everything random follows from this number
    #[arg(long, default_value_t = 1, help_heading = "Guest load")]
    pub(crate) seed: u64,

    /// What is backed up
    #[arg(long, value_enum, default_value = "full", help_heading = "Backup")]
    pub(crate) sync: SyncArg,
    /// Copies in flight at most; --latency-target decides how many there are
    #[arg(long, default_value_t = 64, help_heading = "Backup")]
    pub(crate) workers: u32,
    /// Largest copy; 0: no limit of its own (1M)
    #[arg(long, value_parser = parse_size, default_value = "0", help_heading = "Backup")]
    pub(crate) max_chunk: u64,
    /// What 99 of 100 guest requests may take on the disk while it is copied: a
    /// time (500us, 2ms), auto (twice what they take without) or off
    #[arg(long, value_name = "TIME", value_parser = parse_latency_target, default_value = "auto", help_heading = "Backup")]
    pub(crate) latency_target: LatencyTarget,
    /// Limit in bytes a second; 0: none
    #[arg(long, value_parser = parse_size, default_value = "0", help_heading = "Backup")]
    pub(crate) speed: u64,
    /// Smallest unit of copying, a power of two; 0: 64k
    #[arg(long, value_parser = parse_size, default_value = "0", help_heading = "Backup")]
    pub(crate) min_cluster_size: u64,
    /// What gives way when old data cannot be saved
    #[arg(
        long,
        value_enum,
        default_value = "break-snapshot",
        help_heading = "Backup"
    )]
    pub(crate) on_cbw_error: OnCbwErrorArg,
    /// Seconds that a guest write waits for saves; 0: as long as it takes
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        help_heading = "Backup"
    )]
    pub(crate) cbw_timeout: u32,
    /// Memory for old data on its way to the target; 0: guests wait for the target
    #[arg(long, value_parser = parse_size, default_value = "64M", help_heading = "Backup")]
    pub(crate) save_buffer: u64,
    /// Seconds that --sync none lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Backup")]
    pub(crate) duration: u64,

    /// Fleecing reads in flight while the backup runs; 0: none
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1024), help_heading = "Fleecing")]
    pub(crate) fleece_depth: u32,
    /// Size of a fleecing read
    #[arg(long, value_parser = parse_size, default_value = "64k", help_heading = "Fleecing")]
    pub(crate) fleece_block: u64,

    /// Threads, each with a ring of its own [default: one a core]
    #[arg(long, help_heading = "Engine")]
    pub(crate) shards: Option<usize>,
    /// Do not pin shards to cores
    #[arg(long, help_heading = "Engine")]
    pub(crate) no_pin: bool,
    /// Submission queue entries of each ring
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=32_768), help_heading = "Engine")]
    pub(crate) ring_entries: u32,
    /// The longest that a shard looks for work before it sleeps, in microseconds
    #[arg(long, value_name = "US", default_value_t = DEFAULT_POLL_NS / 1000, value_parser = clap::value_parser!(u64).range(0..=MAX_POLL_US), help_heading = "Engine")]
    pub(crate) poll: u64,
    /// Kernel feature not to be used; may be repeated
    #[arg(long, value_name = "FEATURE", help_heading = "Engine")]
    pub(crate) mask: Vec<Feature>,

    /// Write the report as JSON to a file, or to standard output with '-'
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub(crate) json: Option<PathBuf>,
    /// Write a latency histogram (.hgrm) of each class to a directory
    #[arg(long, value_name = "DIR", help_heading = "Report")]
    pub(crate) hgrm: Option<PathBuf>,
    /// Do not show a progress bar
    #[arg(long, help_heading = "Report")]
    pub(crate) no_progress: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CacheArg {
    Auto,
    Direct,
    Buffered,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OrderArg {
    Random,
    Sequential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SyncArg {
    /// The whole disk
    Full,
    /// What the guest wrote since the baseline began
    Bitmap,
    /// Nothing: copy-before-write alone
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnCbwErrorArg {
    /// The snapshot is lost, the guest goes on
    BreakSnapshot,
    /// The guest's write fails, the snapshot stays good
    BreakGuestWrite,
}

/// No request is larger: what the engine moves with one buffer, a few times over.
const REQUEST_MAX: u64 = 4 << 20;

fn name_of(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().into())
}

impl Args {
    /// What clap cannot see. Before anything is opened or made.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_request("--block", self.block)?;
        check_request("--fleece-block", self.fleece_block)?;
        if self.source.is_none() && (self.size == 0 || !self.size.is_multiple_of(512)) {
            return Err(format!(
                "--size {} is not a multiple of 512 bytes greater than 0: disks consist of sectors",
                self.size
            ));
        }
        if self.workers == 0 {
            return Err("--workers 0 would copy nothing: give at least 1".into());
        }
        if i32::try_from(self.workers).is_err() {
            return Err(format!("--workers must be between 1 and {}", i32::MAX));
        }
        if self.shard_count() == 0 || self.shard_count() > MAX_SHARDS {
            return Err(format!("--shards must be between 1 and {MAX_SHARDS}"));
        }
        self.check_chunks()?;
        self.check_combinations()
    }

    fn check_chunks(&self) -> Result<(), String> {
        let wish = self.min_cluster_size;
        if wish != 0 && !wish.is_power_of_two() {
            return Err(format!("--min-cluster-size: {}", CbwError::NotPowerOfTwo));
        }
        if wish > CLUSTER_SIZE_MAX {
            return Err(format!("--min-cluster-size: {}", CbwError::TooLarge(wish)));
        }
        let cluster_size = self.cluster_size();
        if self.max_chunk != 0 && self.max_chunk < cluster_size {
            return Err(format!(
                "--max-chunk: {}",
                backup::OptionError::MaxChunk {
                    max_chunk: self.max_chunk,
                    cluster_size
                }
            ));
        }
        Ok(())
    }

    fn cluster_size(&self) -> u64 {
        self.min_cluster_size.max(CLUSTER_SIZE_DEFAULT)
    }

    fn check_combinations(&self) -> Result<(), String> {
        if self.no_guest && self.sync != SyncArg::Full {
            return Err("--no-guest needs --sync full: without a guest nothing changes".into());
        }
        if self.image_opts && self.source.is_none() && self.target.is_none() {
            return Err("--image-opts says how --source and --target are given: give one".into());
        }
        Ok(())
    }

    /// Puts the defaults in that depend on the machine. Before shards are
    /// pinned: afterwards each sees one core only.
    pub(crate) fn resolve(&mut self) {
        self.shards = Some(self.shard_count());
        self.queues = Some(self.queue_count());
    }

    /// Whether the disk gets a content first: for a guest that checks what it
    /// reads, and always if it was made for this run.
    pub(crate) fn fills(&self) -> bool {
        !self.no_guest || self.source.is_none()
    }

    pub(crate) fn shard_count(&self) -> usize {
        self.shards
            .unwrap_or_else(|| available_cores().len().clamp(1, MAX_SHARDS))
    }

    pub(crate) fn queue_count(&self) -> u32 {
        let shards = u32::try_from(self.shard_count()).expect("few shards");
        self.queues.unwrap_or(shards)
    }

    pub(crate) fn rate(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.rate)
    }

    pub(crate) fn shards_config(&self) -> Config {
        Config {
            count: self.shard_count(),
            pin: !self.no_pin,
            ring_entries: self.ring_entries,
            poll_ns: self.poll * 1000,
            masked: self.mask.clone(),
            ..Config::default()
        }
    }

    pub(crate) fn cache(&self) -> Cache {
        match self.cache {
            CacheArg::Auto => Cache::Auto,
            CacheArg::Direct => Cache::Direct,
            CacheArg::Buffered => Cache::Buffered,
        }
    }

    pub(crate) fn access_order(&self) -> AccessOrder {
        match self.order {
            OrderArg::Random => AccessOrder::Random,
            OrderArg::Sequential => AccessOrder::Sequential,
        }
    }

    pub(crate) fn filter_options(&self) -> copy_before_write::Options {
        copy_before_write::Options {
            on_cbw_error: match self.on_cbw_error {
                OnCbwErrorArg::BreakSnapshot => OnCbwError::BreakSnapshot,
                OnCbwErrorArg::BreakGuestWrite => OnCbwError::BreakGuestWrite,
            },
            cbw_timeout_ns: u64::from(self.cbw_timeout) * 1_000_000_000,
            min_cluster_size: self.min_cluster_size,
            save_buffer: self.save_buffer,
            ..copy_before_write::Options::default()
        }
    }

    pub(crate) fn job_options(&self) -> backup::Options {
        backup::Options {
            discard_source: false,
            sync: match self.sync {
                SyncArg::Full | SyncArg::Bitmap => backup::Sync::Full,
                SyncArg::None => backup::Sync::None,
            },
            max_workers: self.workers,
            max_chunk: self.max_chunk,
            speed: self.speed,
            latency_target: self.latency_target,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
        }
    }

    /// Every option, for the report.
    pub(crate) fn settings(&self) -> BTreeMap<String, Value> {
        let masked: Vec<_> = self.mask.iter().map(|feature| feature.name()).collect();
        let settings = [
            ("source", json!(self.source)),
            ("target", json!(self.target)),
            ("image-opts", json!(self.image_opts)),
            ("overwrite", json!(self.overwrite)),
            ("size", json!(self.size)),
            ("directory", json!(self.directory)),
            ("cache", json!(name_of(&self.cache))),
            ("fill", json!(self.fill)),
            ("no-guest", json!(self.no_guest)),
            ("block", json!(self.block)),
            ("read-share", json!(self.read_share)),
            ("depth", json!(self.depth)),
            ("rate", json!(self.rate)),
            ("queues", json!(self.queue_count())),
            ("order", json!(name_of(&self.order))),
            ("baseline", json!(self.baseline)),
            ("seed", json!(self.seed)),
            ("sync", json!(name_of(&self.sync))),
            ("workers", json!(self.workers)),
            ("max-chunk", json!(self.max_chunk)),
            (
                "latency-target",
                json!(latency_target_text(self.latency_target)),
            ),
            ("speed", json!(self.speed)),
            ("min-cluster-size", json!(self.min_cluster_size)),
            ("on-cbw-error", json!(name_of(&self.on_cbw_error))),
            ("cbw-timeout", json!(self.cbw_timeout)),
            ("save-buffer", json!(self.save_buffer)),
            ("duration", json!(self.duration)),
            ("fleece-depth", json!(self.fleece_depth)),
            ("fleece-block", json!(self.fleece_block)),
            ("shards", json!(self.shard_count())),
            ("no-pin", json!(self.no_pin)),
            ("ring-entries", json!(self.ring_entries)),
            ("poll", json!(self.poll)),
            ("mask", json!(masked)),
        ];
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }
}

fn check_request(option: &str, bytes: u64) -> Result<(), String> {
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > REQUEST_MAX {
        return Err(format!(
            "{option} {bytes} is not a multiple of 512 bytes from 512 to 4M"
        ));
    }
    Ok(())
}
