//! Who may do what with a node beside whom, here and in other processes.

use ringback_ring::File;
use ringback_ring::lock::{Locks, Permission};

use super::GraphError;

/// What somebody does with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Reads.
    pub read: bool,
    /// Writes.
    pub write: bool,
    /// Minds it if somebody else writes.
    pub alone_writing: bool,
    /// May change the size.
    pub resize: bool,
}

/// What a node below is to a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    File,
    Backing,
    DataFile,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Backing => "backing",
            Self::DataFile => "data-file",
        }
    }
}

/// What a format does with a node below it, as long as it is open.
#[derive(Clone, Debug)]
pub(super) struct ChildClaim {
    /// The node below.
    pub(super) child: String,
    pub(super) role: Role,
    /// For messages.
    pub(super) label: String,
    pub(super) access: Access,
}

impl ChildClaim {
    /// What the format `name` does with `child`; `shares` if it does not mind
    /// writers.
    pub(super) fn new(name: &str, child: &str, role: Role, write: bool, shares: bool) -> Self {
        Self {
            child: child.into(),
            role,
            label: format!("node '{name}' (uses it as '{}' child)", role.name()),
            access: Access {
                read: true,
                write,
                alone_writing: !shares,
                resize: write,
            },
        }
    }
}

/// What somebody does with the node at the bottom of a disk.
pub(super) struct Claim {
    /// The node at which it enters.
    pub(super) entry: String,
    /// For messages.
    pub(super) name: String,
    pub(super) access: Access,
}

/// Whoever writes must not meet anybody else who minds.
pub(super) fn check_claims(node: &str, claims: &[Claim]) -> Result<(), GraphError> {
    for (index, writer) in claims.iter().enumerate() {
        let mut others = claims
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        if writer.access.write
            && let Some((_, other)) = others.find(|(_, other)| other.access.alone_writing)
        {
            return Err(GraphError::Conflict {
                node: node.into(),
                writer: writer.name.clone(),
                other: other.name.clone(),
            });
        }
    }
    Ok(())
}

/// The union of all claims, as other processes see it.
pub(super) fn lock(file: &File, claims: &[Claim]) -> Result<(), GraphError> {
    let any = |what: fn(&Access) -> bool| claims.iter().any(|claim| what(&claim.access));
    let permissions = |wanted: &[(bool, Permission)]| {
        wanted
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|&(_, permission)| permission)
            .collect()
    };
    let locks = Locks {
        held: permissions(&[
            (any(|access| access.read), Permission::ConsistentRead),
            (any(|access| access.write), Permission::Write),
            (any(|access| access.resize), Permission::Resize),
        ]),
        unshared: permissions(&[
            (any(|access| access.alone_writing), Permission::Write),
            (any(|access| access.alone_writing), Permission::Resize),
        ]),
    };
    file.lock(&locks).map_err(|error| GraphError::Lock {
        path: file.path().display().to_string(),
        error,
    })
}
