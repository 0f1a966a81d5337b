//! Before the first byte is copied: what is opened, what may be overwritten, and
//! whether an earlier run is gone on with.

use std::path::{Path, PathBuf};

use ringback_block::graph::Graph;
use ringback_ring::Shard;

use super::args::Args;
use super::place::Place;
use super::session::{Context, Session};
use super::source::{Selection, Source};
use super::state::{Description, Options, Stage, State};
use super::target::{Backing, Plan};

/// Opens everything that a run needs, and writes the first state.
///
/// # Errors
///
/// The reason. A target that was made stays, and can be overwritten.
pub(crate) async fn open(shard: &Shard, context: Context) -> Result<Session, String> {
    let args = &context.args;
    let place = Place::of(&args.target)?;
    let state_path = state_path(args, &place);
    let found = read_state(args, state_path.as_deref())?;
    check_target(args, &place, state_path.as_deref(), found.is_some())?;
    let backing = Backing::find(args, &place)?;
    let mut graph = Graph::new();
    let is_resumed = found.is_some();
    let objects = &context.objects;
    objects.add_groups(shard, &mut graph)?;
    let source = Source::open(shard, &mut graph, args, objects).await?;
    let backing = match source.selection {
        // It stands for itself.
        Selection::FullInstead { .. } => None,
        _ => backing,
    };
    let options = Options {
        bitmap: args.bitmap.clone(),
        bitmap_mode: args
            .bitmap
            .as_ref()
            .map(|_| source.bitmap_mode(args).name().into()),
        new_bitmap: args.new_bitmap.clone(),
        backing: backing.as_ref().map(|backing| backing.name.clone()),
        compress: args.compress,
        update: args.update,
    };
    let mut plan = Plan {
        args,
        objects,
        place,
        size: source.size,
        backing,
    };
    plan.check_apart(&source.disk.paths(&graph))?;
    let described = source.describe(&graph, args)?;
    if found.is_none() && !args.update {
        plan.make(shard, &mut graph).await?;
    }
    let description = Description {
        source: described,
        target: plan.describe()?,
        options,
    };
    let state = match found {
        None => State::new(description),
        Some(state) => match state.backup.difference(&description) {
            None => state,
            Some(why) if state.stage == Stage::Copied => {
                return Err(mismatch(
                    args,
                    state_path.as_deref(),
                    &format!("{why} (and by then everything had been copied)"),
                ));
            }
            Some(why) => return Err(mismatch(args, state_path.as_deref(), &why)),
        },
    };
    let target = plan.open(shard, &mut graph).await?;
    Ok(Session {
        context,
        graph,
        source,
        target,
        state,
        state_path,
        is_resumed,
    })
}

/// Beside a file. A name in `/dev` would be gone after the next boot, and a URI
/// has no place beside it.
fn state_path(args: &Args, place: &Place) -> Option<PathBuf> {
    if let Some(path) = &args.state {
        return Some(path.clone());
    }
    match place {
        Place::Missing(path) | Place::File(path) => {
            let mut name = path.clone().into_os_string();
            name.push(".ringback-state");
            Some(name.into())
        }
        Place::Device(_) | Place::Elsewhere => None,
    }
}

/// The state of the run that this one goes on with, if there is one.
fn read_state(args: &Args, path: Option<&Path>) -> Result<Option<State>, String> {
    if args.overwrite {
        return Ok(None);
    }
    let found = match path {
        None if args.resume => {
            return Err(format!(
                "nothing was kept for '{}': for devices and URIs --state names a file for it",
                args.target
            ));
        }
        None => None,
        Some(path) => State::read(path)?,
    };
    if found.is_none()
        && args.resume
        && let Some(path) = path
    {
        return Err(format!(
            "there is nothing to go on with: '{}' does not exist",
            path.display()
        ));
    }
    Ok(found)
}

fn check_target(
    args: &Args,
    place: &Place,
    state_path: Option<&Path>,
    has_state: bool,
) -> Result<(), String> {
    let target = &args.target;
    match place {
        Place::Missing(_) if has_state => Err(mismatch(
            args,
            state_path,
            &format!("its target '{target}' does not exist"),
        )),
        Place::Missing(_) if args.update => Err(format!(
            "'{target}' does not exist: --update writes into the previous backup"
        )),
        Place::Missing(_) => Ok(()),
        _ if has_state || args.overwrite || args.update => Ok(()),
        Place::File(_) => Err(format!("'{target}' exists; --overwrite replaces it")),
        Place::Device(_) | Place::Elsewhere => Err(format!(
            "what '{target}' holds would be lost; --overwrite allows that"
        )),
    }
}

fn mismatch(args: &Args, state_path: Option<&Path>, why: &str) -> String {
    let path = state_path.unwrap_or(Path::new(""));
    // What an update leaves out of the previous backup is in the bitmap that was merged.
    let way_out = if args.update {
        "remove it to begin the update anew"
    } else {
        "--overwrite begins anew"
    };
    format!(
        "'{}' is the state of another backup, or of this one before something changed: {why}; \
         {way_out}",
        path.display()
    )
}
