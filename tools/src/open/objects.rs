//! What `--object` makes in the programs that open one or two images: limits, and
//! credentials for TLS.

use ringback_block::graph::Graph;
use ringback_net::ClientCredentials;
use ringback_qmp_shim::ThrottleGroupOptions;
use ringback_qmp_shim::command_line::object::ObjectRequest;
use ringback_qmp_shim::command_line::{ArgumentError, ObjectKind, ObjectOptions};
use ringback_ring::Shard;

use super::credentials::TlsCreds;
use super::limits;

/// Objects by their ids, in the order of their making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    all: Vec<(String, Object)>,
}

#[derive(Clone, Debug)]
enum Object {
    /// Limits that several nodes share.
    ThrottleGroup(Box<ThrottleGroupOptions>),
    TlsCreds(TlsCreds),
}

/// Types of QEMU's that are not here.
const OTHER_TYPES: &[&str] = &[
    "iothread",
    "main-loop",
    "secret",
    "secret_keyring",
    "tls-cipher-suites",
];

impl Objects {
    /// Makes one, from the text of the option. Reads the files of credentials.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(crate) fn add(&mut self, text: &str) -> Result<(), String> {
        let (id, object) = make(text)?;
        if self.all.iter().any(|(known, _)| *known == id) {
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        self.all.push((id, object));
        Ok(())
    }

    /// Makes groups of limits known to a graph.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(crate) fn add_groups(&self, shard: &Shard, graph: &mut Graph) -> Result<(), String> {
        for (id, object) in &self.all {
            if let Object::ThrottleGroup(group) = object {
                let added = graph.add_throttle_group(shard, id, limits(&group.limits));
                added.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// The credentials of a client.
    ///
    /// # Errors
    ///
    /// There are none with this id.
    pub(crate) fn client_credentials(&self, id: &str) -> Result<ClientCredentials, String> {
        let found = self.all.iter().find(|(known, _)| known == id);
        let id = id.to_owned();
        let credentials = match found {
            Some((_, Object::TlsCreds(creds))) => creds.client().cloned(),
            Some((_, Object::ThrottleGroup(_))) => Err(ArgumentError::NotCredentials { id }),
            None => Err(ArgumentError::NoCredentials { id }),
        };
        credentials.map_err(|error| error.to_string())
    }

    /// The id of the only credentials of a client that there are.
    pub(super) fn only_credentials(&self) -> Option<&str> {
        let mut ids = self.all.iter().filter_map(|(id, object)| match object {
            Object::TlsCreds(creds) => creds.client().is_ok().then_some(id.as_str()),
            Object::ThrottleGroup(_) => None,
        });
        ids.next().filter(|_| ids.next().is_none())
    }
}

fn make(text: &str) -> Result<(String, Object), String> {
    let kind = text.split(',').next().unwrap_or(text);
    let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
    if kind == "throttle-group" {
        let group = ThrottleGroupOptions::parse(text).map_err(|error| error.to_string())?;
        return Ok((group.id.clone(), Object::ThrottleGroup(Box::new(group))));
    }
    if OTHER_TYPES.contains(&kind) {
        return Err(format!("objects of type '{kind}' are not supported yet"));
    }
    let request = ObjectOptions::parse(text).map_err(|error| error.to_string())?;
    let ObjectRequest::Make(options) = request else {
        return Err("'ringback daemon' has help about objects: --object help".into());
    };
    let object = match options.kind {
        ObjectKind::ThrottleGroup(group) => Object::ThrottleGroup(group),
        ObjectKind::TlsCreds(creds) => Object::TlsCreds(TlsCreds::load(creds)?),
        _ => {
            return Err(format!(
                "Parameter 'qom-type' does not accept value '{kind}'"
            ));
        }
    };
    Ok((options.id, object))
}
