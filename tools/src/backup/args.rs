//! The command line of `ringback backup`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use ringback_qmp_shim::size::parse_size;

/// What stands behind the options in `--help`.
const AFTER_HELP: &str = "\
Exit status:
  0    done (and verified, if that was asked for)
  1    failed; what has been copied is kept, see --resume
  2    wrong usage; nothing was touched
  3    done, but --verify found a difference
  4    an increment was asked for and a full backup was made (--or-full)
  128+N  ended by signal N in good order; what has been copied is kept

Examples:
  ringback backup disk.qcow2 monday.qcow2 --new-bitmap daily
  ringback backup disk.qcow2 tuesday.qcow2 --bitmap daily --backing monday.qcow2
  ringback backup nbd://host/disk copy.raw --bitmap daily --update
  qemu-img convert -O raw tuesday.qcow2 restored.raw

While it runs, TARGET.ringback-state says what is safely on the target. After an
interruption of whatever kind the same command goes on where it stopped.";

/// Copy a disk that nobody writes to: an image, a block device or an NBD export.
///
/// SOURCE is locked against writers, as QEMU locks images, and not changed, but
/// for a bitmap that is named here. Sizes take the suffixes k, M, G, T (powers
/// of 1024).
#[derive(Clone, Debug, ClapArgs)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// What is backed up: an image, a block device, or an NBD URI
    pub(crate) source: String,
    /// Where to: an image, which is made, a block device, or an NBD URI
    pub(crate) target: String,
    /// Format of SOURCE [default: found by looking at an image; raw for others]
    #[arg(short = 'f', long, value_enum, value_name = "FORMAT")]
    pub(crate) source_format: Option<Format>,
    /// Format of TARGET [default: qcow2 for a name that ends so, else raw]
    #[arg(short = 'F', long, value_enum, value_name = "FORMAT")]
    pub(crate) target_format: Option<Format>,
    /// Write to a TARGET that exists; what it holds is lost
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Go on with an interrupted backup; fail if there is none
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Where it is kept what is done [default: TARGET.ringback-state beside a
    /// file; none for devices and URIs]
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Read SOURCE although another process may be writing to it: the backup is
    /// then of no single instant
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,

    /// Copy only what is dirty in this bitmap of SOURCE: a persistent one of a qcow2
    /// image, or one that an NBD server shows
    #[arg(long, value_name = "NAME", help_heading = "Incremental backups")]
    pub(crate) bitmap: Option<String>,
    /// What becomes of the bitmap [default: on-success; a server's is left alone]
    #[arg(
        long,
        value_enum,
        requires = "bitmap",
        help_heading = "Incremental backups"
    )]
    pub(crate) bitmap_mode: Option<BitmapModeArg>,
    /// The previous backup, which shows through in an incremental TARGET
    #[arg(
        long,
        value_name = "FILE",
        requires = "bitmap",
        help_heading = "Incremental backups"
    )]
    pub(crate) backing: Option<String>,
    /// Format of the previous backup [default: found by looking at it]
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        requires = "backing",
        help_heading = "Incremental backups"
    )]
    pub(crate) backing_format: Option<Format>,
    /// TARGET is the previous backup: write into it what has changed
    #[arg(
        long,
        requires = "bitmap",
        conflicts_with_all = ["backing", "overwrite", "compress"],
        help_heading = "Incremental backups"
    )]
    pub(crate) update: bool,
    /// If the bitmap is missing or unusable make a full backup and, in an image, a
    /// new bitmap
    #[arg(long, requires = "bitmap", help_heading = "Incremental backups")]
    pub(crate) or_full: bool,
    /// With a full backup begin a persistent bitmap of SOURCE, for increments
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "bitmap",
        help_heading = "Incremental backups"
    )]
    pub(crate) new_bitmap: Option<String>,

    /// Make an object that names and options refer to: tls-creds-x509, throttle-group
    #[arg(long, value_name = "OBJECT", help_heading = "Servers")]
    pub(crate) object: Vec<String>,

    /// Copies in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Copying")]
    pub(crate) workers: u32,
    /// Largest copy; 0: no limit of its own (1M)
    #[arg(long, value_parser = parse_size, default_value = "0", help_heading = "Copying")]
    pub(crate) max_chunk: u64,
    /// Limit in bytes a second; 0: none
    #[arg(long, value_parser = parse_size, default_value = "0", help_heading = "Copying")]
    pub(crate) speed: u64,
    /// Store the data compressed (qcow2 only)
    #[arg(long, help_heading = "Copying")]
    pub(crate) compress: bool,
    /// Read SOURCE and TARGET back when done and compare: what was copied, or
    /// the whole disk as a restore would see it
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "copied",
        help_heading = "Copying"
    )]
    pub(crate) verify: Option<VerifyArg>,
    /// Page cache: auto is direct where the file system can
    #[arg(long, value_enum, default_value = "auto", help_heading = "Copying")]
    pub(crate) cache: CacheArg,
    /// Seconds between two flushes after which what is done is noted
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600), help_heading = "Copying")]
    pub(crate) checkpoint: u64,

    /// The result as a JSON object on standard output, and progress as one JSON
    /// object a line on standard error
    #[arg(long, help_heading = "Report")]
    pub(crate) json: bool,
    /// No progress, and no summary but with --json; errors are still told
    #[arg(short, long, help_heading = "Report")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    /// Its name in QEMU.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BitmapModeArg {
    /// Cleared if the backup succeeds
    OnSuccess,
    /// Left as it is
    Never,
    /// What was copied is cleared, also if the backup fails
    Always,
}

impl BitmapModeArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OnSuccess => "on-success",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyArg {
    /// What was copied
    Copied,
    /// The whole disk, through the backing files of TARGET
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    Auto,
    Direct,
    Buffered,
}

impl CacheArg {
    /// Whether to pass the page cache by, in the order in which it is tried.
    pub(crate) fn attempts(self) -> &'static [bool] {
        match self {
            Self::Auto => &[true, false],
            Self::Direct => &[true],
            Self::Buffered => &[false],
        }
    }
}

/// No copy is in smaller units.
const CHUNK_MIN: u64 = 64 << 10;

impl Args {
    /// What clap cannot see. Before anything is opened or made.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.max_chunk != 0 && self.max_chunk < CHUNK_MIN {
            return Err(
                "--max-chunk must be at least 64k: nothing is copied in smaller units".into(),
            );
        }
        if self.compress && self.target_format() != Format::Qcow2 {
            return Err(
                "--compress needs a qcow2 target: name it with .qcow2 or give -F qcow2".into(),
            );
        }
        self.check_increment()?;
        if self.force_share && self.writes_to_source() {
            return Err(
                "--force-share only reads the source: use --bitmap-mode never, and no --new-bitmap"
                    .into(),
            );
        }
        Ok(())
    }

    fn check_increment(&self) -> Result<(), String> {
        if self.bitmap.is_none() {
            return Ok(());
        }
        if self.update {
            return Ok(());
        }
        if self.target_format() != Format::Qcow2 {
            return Err(
                "an incremental backup needs a qcow2 target, in which the previous backup shows \
                 through: name it with .qcow2 or give -F qcow2; or --update writes into the \
                 previous backup"
                    .into(),
            );
        }
        if self.backing.is_none() {
            return Err(
                "--bitmap needs --backing with the previous backup, or --update: the increment \
                 alone is not a disk"
                    .into(),
            );
        }
        Ok(())
    }

    /// Whether a bitmap of the source is to be changed at the end.
    pub(crate) fn writes_to_source(&self) -> bool {
        self.new_bitmap.is_some()
            || (self.bitmap.is_some() && self.bitmap_mode() != BitmapModeArg::Never)
    }

    /// What becomes of a bitmap in an image.
    pub(crate) fn bitmap_mode(&self) -> BitmapModeArg {
        self.bitmap_mode.unwrap_or(BitmapModeArg::OnSuccess)
    }

    pub(crate) fn target_format(&self) -> Format {
        self.target_format.unwrap_or_else(|| {
            if self.target.ends_with(".qcow2") {
                Format::Qcow2
            } else {
                Format::Raw
            }
        })
    }
}
