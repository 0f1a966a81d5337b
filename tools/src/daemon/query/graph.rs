//! `x-debug-query-block-graph`: backends, jobs and nodes, and what each takes of
//! the nodes below.

use std::collections::BTreeMap;

use ringback_block::graph::{Edge, Parent, UserId};
use ringback_ring::lock::Permission;
use serde_json::{Value, json};

use crate::daemon::control::Control;

/// What has a number in the answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    /// A drive or device, by its place.
    Backend(usize),
    /// Somebody else who sends requests.
    User(UserId),
    Job(String),
    Node(String),
}

/// Numbers are given when something is met for the first time, in the order in
/// which QEMU looks at things: backends, jobs, nodes from the oldest on, each
/// followed by what is directly below. The lists come out in reverse.
#[derive(Default)]
struct Picture {
    numbers: BTreeMap<Point, usize>,
    nodes: Vec<Value>,
    edges: Vec<Value>,
}

impl Picture {
    fn number(&mut self, point: Point) -> usize {
        let next = self.numbers.len() + 1;
        *self.numbers.entry(point).or_insert(next)
    }

    fn add_point(&mut self, point: Point, kind: &str, name: &str) {
        let id = self.number(point);
        self.nodes
            .push(json!({ "id": id, "type": kind, "name": name }));
    }

    fn add(&mut self, parent: Point, edge: &Edge<'_>) {
        let parent = self.number(parent);
        let child = self.number(Point::Node(edge.child.to_owned()));
        self.edges.push(json!({
            "parent": parent,
            "child": child,
            "name": edge.name,
            "perm": words(&edge.taken),
            "shared-perm": words(&edge.shared),
        }));
    }

    fn answer(mut self) -> Value {
        self.nodes.reverse();
        self.edges.reverse();
        json!({ "nodes": self.nodes, "edges": self.edges })
    }
}

/// In QEMU's order.
fn words(permissions: &[Permission]) -> Value {
    let all = [
        (Permission::Resize, "resize"),
        (Permission::WriteUnchanged, "write-unchanged"),
        (Permission::Write, "write"),
        (Permission::ConsistentRead, "consistent-read"),
    ];
    let has = all
        .into_iter()
        .filter(|(permission, _)| permissions.contains(permission));
    has.map(|(_, word)| word).collect()
}

impl Control {
    pub(in crate::daemon) fn query_block_graph(&self) -> Value {
        let edges = self.graph.edges();
        let mut picture = Picture::default();
        let mut seen = Vec::new();
        for (index, backend) in self.backends.iter().enumerate() {
            let point = Point::Backend(index);
            picture.add_point(point.clone(), "block-backend", &backend.title());
            let Some(user) = backend.user() else {
                continue;
            };
            seen.push(user);
            for edge in edges
                .iter()
                .filter(|edge| edge.parent == Parent::User(user))
            {
                picture.add(point.clone(), edge);
            }
        }
        for edge in &edges {
            if let Parent::User(user) = edge.parent
                && !seen.contains(&user)
            {
                picture.add_point(Point::User(user), "block-backend", "");
                picture.add(Point::User(user), edge);
            }
        }
        self.add_jobs(&mut picture);
        for name in self.graph.names() {
            let point = Point::Node(name.to_owned());
            picture.add_point(point.clone(), "block-driver", name);
            // The youngest child first, so that it is shown last.
            let below = edges.iter().rev();
            for edge in below.filter(|edge| edge.parent == Parent::Node(name)) {
                picture.add(point.clone(), edge);
            }
        }
        picture.answer()
    }

    /// A job keeps its nodes, and takes nothing of them by itself: its filter
    /// does.
    fn add_jobs(&self, picture: &mut Picture) {
        let jobs: Vec<_> = self.jobs.iter().collect();
        for job in jobs {
            let point = Point::Job(job.id().to_owned());
            picture.add_point(point.clone(), "block-job", job.id());
            let nodes = job.nodes();
            for (role, node) in nodes.iter().rev().filter(|(role, _)| *role != "source") {
                let edge = edge_of_job(node, role);
                picture.add(point.clone(), &edge);
            }
        }
    }
}

fn edge_of_job<'a>(node: &'a str, role: &'static str) -> Edge<'a> {
    Edge {
        // What it is called by is known to whoever shows it.
        parent: Parent::Node(""),
        child: node,
        name: role,
        taken: Vec::new(),
        shared: Permission::ALL.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_at_the_first_sight() {
        let mut picture = Picture::default();
        picture.add_point(Point::Backend(0), "block-backend", "d0");
        picture.add(Point::Backend(0), &edge_of_job("top", "root"));
        for name in ["file", "top"] {
            picture.add_point(Point::Node(name.into()), "block-driver", name);
        }
        let answer = picture.answer();
        let nodes = answer["nodes"].as_array().expect("a list");
        let ids: Vec<_> = nodes
            .iter()
            .map(|node| (node["name"].as_str(), node["id"].as_u64()))
            .collect();
        let wanted = [("top", 2), ("file", 3), ("d0", 1)];
        assert_eq!(ids, wanted.map(|(name, id)| (Some(name), Some(id))));
        let order = ["resize", "write-unchanged", "write", "consistent-read"];
        assert_eq!(answer["edges"][0]["shared-perm"], json!(order));
    }
}
