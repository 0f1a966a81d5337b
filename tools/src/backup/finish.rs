//! The end of a run: the source's bitmap, the state, and what is said.
//!
//! The target is closed first. Only if that went well the bitmap is changed, and
//! only if that went well the state goes.

use ringback_block::graph::Graph;
use ringback_ring::Shard;

use super::args::BitmapModeArg;
use super::bitmap;
use super::open::Disk;
use super::outcome::{Ending, Outcome};
use super::session::{Session, Stop};
use super::source::Selection;
use super::spans;
use super::state::State;
use crate::open;

impl Session {
    /// Everything is on the target.
    pub(super) async fn end_well(mut self, shard: &Shard, outcome: &mut Outcome) {
        let closed = self.close_target(shard).await;
        let mut ended = closed.map_err(|error| format!("closing the target failed: {error}"));
        if ended.is_ok() && outcome.ending == Ending::Done {
            if let Some((name, ending)) = self.bitmap_ending() {
                ended = self.end_bitmap(shard, &name, &ending).await.map_err(|error| {
                    format!(
                        "the backup is complete, but bitmap '{name}' of the source could not be \
                         changed: {error}"
                    )
                });
            }
            if let Selection::FullInstead { why, .. } = &self.source.selection {
                outcome.ending = Ending::FullInstead;
                outcome
                    .messages
                    .push(format!("{why}: a full backup was made"));
            }
            if ended.is_ok() {
                ended = self.state_path.as_deref().map_or(Ok(()), State::remove);
            }
        } else if let Some(hint) = self.hint() {
            outcome.messages.push(hint);
        }
        if let Err(error) = ended {
            outcome.ending = Ending::Failed;
            outcome.messages.push(error);
            outcome.messages.extend(self.hint());
        }
        // It was only read, or its bitmap is stored by now.
        let _ = self.close_source(shard).await;
    }

    /// What becomes of which bitmap when all is well.
    fn bitmap_ending(&self) -> Option<(String, bitmap::Ending)> {
        let args = self.args();
        if self.source.is_of_server {
            return None;
        }
        if let Some(name) = &args.new_bitmap {
            return Some((name.clone(), bitmap::Ending::Begin { is_there: false }));
        }
        match &self.source.selection {
            Selection::Increment { name, .. } if args.bitmap_mode() != BitmapModeArg::Never => {
                Some((name.clone(), bitmap::Ending::Leave(Vec::new())))
            }
            Selection::FullInstead { is_there, .. }
                if args.bitmap_mode() != BitmapModeArg::Never =>
            {
                let ending = bitmap::Ending::Begin {
                    is_there: *is_there,
                };
                Some((args.bitmap.clone()?, ending))
            }
            _ => None,
        }
    }

    /// Changes the bitmap and stores it: that is done when the source is closed.
    async fn end_bitmap(
        &mut self,
        shard: &Shard,
        name: &str,
        ending: &bitmap::Ending,
    ) -> Result<(), String> {
        ending
            .carry_out(shard, &mut self.graph, &self.source.disk, name)
            .await?;
        self.close_source(shard).await
    }

    pub(super) async fn end_badly(mut self, shard: &Shard, outcome: &mut Outcome, stop: Stop) {
        outcome.ending = match stop {
            Stop::Interrupted(signal) => {
                outcome.messages.push("interrupted".into());
                Ending::Interrupted(signal)
            }
            Stop::Failed(error) => {
                outcome.messages.push(error);
                Ending::Failed
            }
        };
        // The first error counts.
        let closed = self.close_target(shard).await;
        let gives_up = self.args().bitmap_mode() == BitmapModeArg::Always && closed.is_ok();
        match self.source.increment().map(str::to_owned) {
            Some(name) if gives_up => {
                let rest = spans::without(&self.source.areas(), &self.state.done());
                let message = match self
                    .end_bitmap(shard, &name, &bitmap::Ending::Leave(rest))
                    .await
                {
                    Ok(()) => {
                        if let Some(path) = &self.state_path {
                            outcome.messages.extend(State::remove(path).err());
                        }
                        "what was copied is no longer dirty in the bitmap: keep this target, the \
                         next increment stands on it"
                            .into()
                    }
                    Err(error) => format!("bitmap '{name}' is as it was: {error}"),
                };
                outcome.messages.push(message);
            }
            _ => outcome.messages.extend(self.hint()),
        }
        let _ = self.close_source(shard).await;
    }

    /// How to go on.
    fn hint(&self) -> Option<String> {
        let path = self.state_path.as_ref().filter(|path| path.exists())?;
        Some(format!(
            "'{}' says what is on the target: the same command with --resume instead of \
             --overwrite goes on",
            path.display()
        ))
    }

    async fn close_target(&mut self, shard: &Shard) -> Result<(), String> {
        close(shard, &mut self.graph, &mut self.target).await
    }

    async fn close_source(&mut self, shard: &Shard) -> Result<(), String> {
        close(shard, &mut self.graph, &mut self.source.disk).await
    }
}

/// Closes a disk, which does nothing the second time.
async fn close(shard: &Shard, graph: &mut Graph, disk: &mut Disk) -> Result<(), String> {
    graph.detach(disk.user).await;
    let nodes = std::mem::take(&mut disk.chain.nodes);
    open::close(shard, graph, &nodes)
        .await
        .map_err(|error| error.to_string())
}
