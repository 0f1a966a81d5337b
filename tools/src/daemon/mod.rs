//! `ringback daemon`: so far, what it would run on.

use ringback_ring::probe;

/// Options of the daemon.
#[derive(Debug, clap::Args)]
#[command(disable_version_flag = true)]
pub(crate) struct Args {
    /// Show the version; with -v also what the kernel offers
    #[arg(short = 'V', long)]
    version: bool,
    /// Show more
    #[arg(short, long)]
    verbose: bool,
}

/// Shows the version; anything else is refused.
pub(crate) fn run(args: &Args) -> Result<(), String> {
    if !args.version {
        return Err(
            "this version has no QMP server yet; `ringback daemon --version -v` shows what \
                    it would run on, and `ringback bench` shows what the engine does"
                .into(),
        );
    }
    println!("ringback daemon {}", env!("CARGO_PKG_VERSION"));
    if args.verbose {
        let report = probe::probe().map_err(|error| error.to_string())?;
        println!("{report}");
    }
    Ok(())
}
