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
    /// Minds it if somebody else changes the size.
    pub keeps_size: bool,
}

impl Access {
    /// While a copy-before-write filter stands, its target is its own.
    pub(super) const OF_TARGET: Self = Self {
        read: true,
        write: true,
        alone_writing: true,
        resize: false,
        keeps_size: false,
    };
}

/// What a node below is to a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    File,
    Backing,
    DataFile,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
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
            label: format!(
                "node '{name}' (uses node '{child}' as '{}' child)",
                role.name()
            ),
            access: Access {
                read: true,
                write,
                alone_writing: !shares,
                resize: write,
                keeps_size: false,
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
    pub(super) held: Vec<Permission>,
    pub(super) unshared: Vec<Permission>,
    /// The filter that claims this for itself. Its users' claims and this one
    /// are of one mind.
    pub(super) filter: Option<String>,
}

impl Claim {
    pub(super) fn of_user(entry: &str, name: &str, access: Access) -> Self {
        let mut held = Vec::new();
        if access.read {
            held.push(Permission::ConsistentRead);
        }
        if access.write {
            held.push(Permission::Write);
        }
        if access.resize {
            held.push(Permission::Resize);
        }
        let unshared = if access.alone_writing {
            vec![Permission::Write, Permission::Resize]
        } else if access.keeps_size {
            vec![Permission::Resize]
        } else {
            Vec::new()
        };
        Self {
            entry: entry.into(),
            name: name.into(),
            held,
            unshared,
            filter: None,
        }
    }

    pub(super) fn holds(&self, permission: Permission) -> bool {
        self.held.contains(&permission)
    }
}

/// Whoever does something must not meet anybody else who minds. Claims that
/// are not apart never contradict each other.
pub(super) fn check_claims(
    node: &str,
    claims: &[Claim],
    is_apart: impl Fn(&Claim, &Claim) -> bool,
) -> Result<(), GraphError> {
    for (index, writer) in claims.iter().enumerate() {
        for permission in writer.held.iter().copied() {
            let other = claims.iter().enumerate().find(|(other, claim)| {
                *other != index && claim.unshared.contains(&permission) && is_apart(writer, claim)
            });
            if let Some((_, other)) = other {
                return Err(GraphError::Conflict {
                    permission,
                    node: node.into(),
                    writer: writer.name.clone(),
                    other: other.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// The union of all claims, as other processes see it.
pub(super) fn lock(file: &File, claims: &[Claim]) -> Result<(), GraphError> {
    let all_that = |is_so: &dyn Fn(Permission) -> bool| {
        let all = Permission::ALL.into_iter();
        all.filter(|&permission| is_so(permission)).collect()
    };
    let locks = Locks {
        held: all_that(&|permission| claims.iter().any(|claim| claim.holds(permission))),
        unshared: all_that(&|permission| {
            let mut unshared = claims.iter().flat_map(|claim| &claim.unshared);
            unshared.any(|&other| other == permission)
        }),
    };
    file.lock(&locks).map_err(|error| GraphError::Lock {
        path: file.path().display().to_string(),
        error,
    })
}
