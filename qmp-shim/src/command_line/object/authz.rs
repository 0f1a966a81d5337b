//! `authz-list`, `authz-listfile` and `authz-simple`.

use crate::command_line::error::Result;
use crate::visit::{Reader, words};

/// Who may come in, rule by rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthzListOptions {
    /// What holds for whom no rule is about.
    pub policy: Policy,
    /// The rules; the first that fits counts.
    pub rules: Vec<AuthzRule>,
}

/// A rule about some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthzRule {
    /// Whom it is about.
    pub pattern: String,
    /// Whether they may come in.
    pub policy: Policy,
    /// What the pattern is.
    pub format: MatchFormat,
}

/// Rules in a file, which is JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthzFileOptions {
    /// The file.
    pub filename: String,
    /// Whether it is read again when it changes.
    pub refresh: bool,
}

/// The one who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthzSimpleOptions {
    /// The name that the other side shows.
    pub identity: String,
}

words! {
    /// Whether somebody may come in.
    pub enum Policy {
        /// No.
        Deny = "deny",
        /// Yes.
        Allow = "allow",
    }
}

words! {
    /// What a pattern is.
    pub enum MatchFormat {
        /// The name itself.
        Exact = "exact",
        /// A name with wildcards.
        Glob = "glob",
    }
}

impl AuthzListOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let policy = reader.word("policy")?.unwrap_or_default();
        let mut rules = Vec::new();
        for rule in reader.objects("rules")?.unwrap_or_default() {
            let mut rule = rule?;
            rules.push(AuthzRule {
                pattern: rule.required("match", Reader::text)?,
                policy: rule.required("policy", Reader::word)?,
                format: rule.word("format")?.unwrap_or_default(),
            });
            rule.finish()?;
        }
        Ok(Self { policy, rules })
    }
}

impl AuthzFileOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            filename: reader.required("filename", Reader::text)?,
            refresh: reader.boolean("refresh")?.unwrap_or(true),
        })
    }
}

impl AuthzSimpleOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            identity: reader.required("identity", Reader::text)?,
        })
    }
}
