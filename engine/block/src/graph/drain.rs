//! Who is held while the graph changes, and until when.

use std::sync::Arc;

use ringback_ring::Shard;

use super::{Graph, Kind, UserId};
use crate::filter::copy_before_write::CopyBeforeWrite;

impl Graph {
    /// Users whose requests pass through a node, or make a filter write to it.
    pub(super) fn users_above(&self, name: &str) -> Vec<UserId> {
        let mut entries = vec![name];
        for (filter, node) in &self.nodes {
            match &node.kind {
                Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, name) => {
                    entries.push(filter);
                }
                // A client's discard reaches the filter's target.
                Kind::SnapshotAccess { file, .. } if self.writes_through(file, name) => {
                    entries.push(filter);
                }
                _ => {}
            }
        }
        self.users
            .iter()
            .filter(|(_, user)| {
                let mut entries = entries.iter();
                entries.any(|entry| self.passes_through(&user.node, entry))
            })
            .map(|(&id, _)| id)
            .collect()
    }

    /// Whether a filter saves to a node.
    fn writes_through(&self, filter: &str, name: &str) -> bool {
        self.nodes.get(filter).is_some_and(|node| {
            matches!(&node.kind, Kind::CopyBeforeWrite { target, .. } if self.passes_through(target, name))
        })
    }

    /// All gates are closed before anybody is waited for.
    pub(super) async fn drain(&self, users: &[UserId]) {
        for id in users {
            self.users[id].attachment.close().await;
        }
        for id in users {
            self.users[id].attachment.drain().await;
        }
    }

    /// The same, and nothing is being saved by these filters. What they have in memory
    /// leaves before guests are held; answers from when on they are.
    pub(super) async fn drain_with_saves(
        &self,
        shard: &Shard,
        users: &[UserId],
        filters: &[Arc<CopyBeforeWrite>],
    ) -> u64 {
        for filter in filters {
            filter.wait_briefly_for_saves_in_flight(shard).await;
        }
        let held_ns = shard.now_ns();
        self.drain(users).await;
        for filter in filters {
            filter.wait_for_saves_in_flight(shard).await;
        }
        held_ns
    }

    /// Filters that save to one of these nodes for guests alone: a job's copies do not
    /// end when guests are drained.
    pub(super) fn filters_that_write(&self, names: &[&str]) -> Vec<Arc<CopyBeforeWrite>> {
        let filters = self.nodes.values().filter_map(|node| match &node.kind {
            Kind::CopyBeforeWrite { filter, target, .. } => Some((filter, target)),
            _ => None,
        });
        filters
            .filter(|(filter, target)| {
                let mut names = names.iter();
                !filter.has_job() && names.any(|name| self.passes_through(target, name))
            })
            .map(|(filter, _)| Arc::clone(filter))
            .collect()
    }

    /// Opens the gates onto the paths as the graph is now.
    pub(super) async fn resume(&self, users: &[UserId]) {
        for node in self.nodes.values() {
            if let Kind::CopyBeforeWrite {
                filter,
                file,
                target,
                ..
            } = &node.kind
                && let (Ok(source), Ok(target)) = (self.path(file), self.path(target))
            {
                filter.set_paths(source, target);
            }
        }
        for id in users {
            let user = &self.users[id];
            let path = self
                .path(&user.node)
                .expect("a used node and its children exist");
            user.attachment.resume(Some(path)).await;
        }
    }
}
