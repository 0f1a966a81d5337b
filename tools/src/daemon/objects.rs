//! Objects that others refer to by an id: groups of limits, threads, secrets,
//! credentials, lists of who may come in; and the tree of names in which they and
//! the devices are found.
//!
//! A thread is a name for one of the shards that run anyway. What is said about
//! how it should wait is kept and shown, and changes nothing.

mod tls;
mod tree;

use std::io::Read;

use ringback_block::graph::GraphError;
use ringback_net::{AccessList, AccessLists};
use ringback_qmp_shim::command::{StrOrNull, XBlockdevSetIothread};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::object::{
    AuthzListOptions, AuthzSimpleOptions, IothreadOptions, SecretFormat, SecretOptions,
    SecretSource,
};
use ringback_qmp_shim::command_line::{ArgumentError, ObjectKind, ObjectOptions};
use ringback_qmp_shim::throttle_group;
use serde_json::{Value, json};

use super::Reply;
use super::control::Control;
use crate::open::{TlsCreds, limits};
pub(super) use tree::list_types;

/// No password is so long, in bytes.
const SECRET_MAX: u64 = 1 << 20;
/// Longest time of looking for work if nobody says, in nanoseconds.
const POLL_MAX_NS: i64 = 32_768;
/// Most threads for blocking work if nobody says.
const POOL_MAX: i64 = 64;

/// All objects, in the order of their making.
#[derive(Default)]
pub(super) struct Objects {
    all: Vec<(String, Object)>,
    /// What those come to that are lists; servers look there.
    access_lists: AccessLists,
}

enum Object {
    /// The graph has it too.
    ThrottleGroup(throttle_group::Limits),
    Iothread(Iothread),
    Secret(Secret),
    TlsCreds(TlsCreds),
    AuthzList(AuthzListOptions),
    AuthzSimple(AuthzSimpleOptions),
}

/// A name for a shard.
pub(super) struct Iothread {
    options: IothreadOptions,
    /// Of the shard.
    thread_id: i32,
}

/// A password or key, and the properties it was made with.
pub(super) struct Secret {
    data: String,
    file: String,
    keyid: String,
    iv: String,
    format: SecretFormat,
    /// What it comes to.
    bytes: Vec<u8>,
}

impl Objects {
    fn get(&self, id: &str) -> Option<&Object> {
        let found = self.all.iter().find(|(known, _)| known == id);
        found.map(|(_, object)| object)
    }

    fn get_mut(&mut self, id: &str) -> Option<&mut Object> {
        let found = self.all.iter_mut().find(|(known, _)| known == id);
        found.map(|(_, object)| object)
    }

    fn iothreads(&self) -> impl DoubleEndedIterator<Item = (&str, &Iothread)> {
        let all = self.all.iter();
        all.filter_map(|(id, object)| match object {
            Object::Iothread(thread) => Some((id.as_str(), thread)),
            _ => None,
        })
    }

    /// The thread of a name.
    pub(super) fn iothread(&self, id: &str) -> Option<&Iothread> {
        let mut threads = self.iothreads();
        threads.find(|(known, _)| *known == id).map(|(_, it)| it)
    }
}

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

impl Control {
    pub(super) async fn object_add(
        &mut self,
        object: Result<ObjectOptions, ArgumentError>,
    ) -> Reply {
        let object = object?;
        self.add_object(&object).await?;
        Ok(json!({}))
    }

    pub(super) async fn add_object(&mut self, object: &ObjectOptions) -> Result<(), CommandError> {
        let id = &object.id;
        if self.objects.get(id).is_some() {
            return Err(generic(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        let made = match &object.kind {
            ObjectKind::ThrottleGroup(group) => {
                self.graph
                    .add_throttle_group(&self.shard, id, limits(&group.limits))
                    .map_err(|error| generic(error.to_string()))?;
                Object::ThrottleGroup(group.limits)
            }
            ObjectKind::Iothread(options) => Object::Iothread(self.make_iothread(*options).await?),
            ObjectKind::Secret(options) => Object::Secret(self.make_secret(options).await?),
            ObjectKind::TlsCreds(options) => {
                Object::TlsCreds(self.make_credentials(options).await?)
            }
            ObjectKind::AuthzList(options) => {
                let list = tls::access_list(options);
                self.objects.access_lists.insert(id, list);
                Object::AuthzList(options.clone())
            }
            ObjectKind::AuthzSimple(options) => {
                let list = AccessList::only(&options.identity);
                self.objects.access_lists.insert(id, list);
                Object::AuthzSimple(options.clone())
            }
            ObjectKind::AuthzListFile(_) => {
                return Err(generic(
                    "ringback has no objects of the type 'authz-listfile': give the rules to an \
                     'authz-list'",
                ));
            }
        };
        self.objects.all.push((id.clone(), made));
        Ok(())
    }

    /// Threads are shards in turn, and the control task's own comes last.
    async fn make_iothread(&self, options: IothreadOptions) -> Result<Iothread, CommandError> {
        let set = self.shard.set();
        let shard = (self.objects.iothreads().count() + 1) % set.count();
        let thread = set.spawn_on(shard, |_| async { nix::unistd::gettid().as_raw() });
        let thread_id = thread.await.map_err(|gone| generic(gone.to_string()))?;
        Ok(Iothread { options, thread_id })
    }

    async fn make_secret(&self, options: &SecretOptions) -> Result<Secret, CommandError> {
        let mut secret = Secret {
            data: String::new(),
            file: String::new(),
            keyid: String::new(),
            iv: String::new(),
            format: options.format,
            bytes: Vec::new(),
        };
        match &options.source {
            SecretSource::Data(data) => {
                secret.data = options.format.encode(data);
                secret.bytes.clone_from(&data.0);
            }
            SecretSource::File(file) => {
                secret.file.clone_from(file);
                let name = file.clone();
                let written = self.shard.blocking(move || read_secret(&name)).await;
                let written = written.map_err(generic)?;
                let decoded = options.format.decode(&written);
                secret.bytes = decoded.map_err(|error| generic(error.to_string()))?.0;
            }
        }
        Ok(secret)
    }

    pub(super) fn object_del(&mut self, id: &str) -> Reply {
        match self.objects.get(id) {
            None => return Err(generic(format!("object '{id}' not found"))),
            Some(Object::ThrottleGroup(_)) => {
                self.graph
                    .remove_throttle_group(id)
                    .map_err(|error: GraphError| generic(error.to_string()))?;
            }
            Some(Object::AuthzList(_) | Object::AuthzSimple(_)) => {
                self.objects.access_lists.remove(id);
            }
            Some(Object::Iothread(_) | Object::Secret(_) | Object::TlsCreds(_)) => {}
        }
        self.objects.all.retain(|(known, _)| known != id);
        Ok(json!({}))
    }

    /// Newest first.
    pub(super) fn query_iothreads(&self) -> Value {
        let threads = self.objects.iothreads().rev();
        let entries = threads.map(|(id, thread)| {
            json!({
                "id": id,
                "thread-id": thread.thread_id,
                "poll-max-ns": thread.options.poll_max_ns.unwrap_or(POLL_MAX_NS),
                "poll-grow": thread.options.poll_grow.unwrap_or(0),
                "poll-shrink": thread.options.poll_shrink.unwrap_or(0),
                "aio-max-batch": thread.options.aio_max_batch.unwrap_or(0),
            })
        });
        entries.collect()
    }

    /// A node belongs to no thread: whoever sends a request to it does the work,
    /// on his own shard. So there is nothing to move, and names are checked.
    pub(super) fn set_iothread(&self, asked: &XBlockdevSetIothread) -> Reply {
        let name = &asked.node_name;
        if !self.graph.contains(name) {
            return Err(generic(format!(
                "Failed to find node with node-name='{name}'"
            )));
        }
        if self.graph.has_users(name) && asked.force != Some(true) {
            return Err(generic(format!(
                "Node {name} is associated with a BlockBackend and could be in use (use \
                 force=true to override this check)"
            )));
        }
        if let StrOrNull::Str(id) = &asked.iothread
            && self.objects.iothread(id).is_none()
        {
            return Err(generic(format!("Cannot find iothread {id}")));
        }
        Ok(json!({}))
    }
}

fn read_secret(name: &str) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| {
        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
        let reason = ringback_ring::error_text(errno);
        format!("Unable to read {name}: Failed to open file \u{201c}{name}\u{201d}: {reason}")
    };
    let file = std::fs::File::open(name).map_err(fail)?;
    let mut bytes = Vec::new();
    let mut limited = file.take(SECRET_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(format!(
            "Unable to read {name}: more than {SECRET_MAX} bytes"
        ));
    }
    Ok(bytes)
}
