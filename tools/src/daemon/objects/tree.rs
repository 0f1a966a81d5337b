//! The tree of names: `qom-list`, `qom-get`, `qom-set`. A name without a slash is
//! looked for everywhere.

use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::object::SecretFormat;
use ringback_qmp_shim::visit::Word;
use serde_json::{Map, Value, json};

use super::{Iothread, Object, POLL_MAX_NS, POOL_MAX, Secret, generic};
use crate::daemon::Reply;
use crate::daemon::control::Control;
use crate::open::limits;

/// What a path leads to.
enum Place {
    Container(&'static str),
    Object(String),
    Chardev,
    Device,
}

const ROOT: &str = "/";
const OBJECTS: &str = "/objects";
const CHARDEVS: &str = "/chardevs";
const MACHINE: &str = "/machine";
const PERIPHERAL: &str = "/machine/peripheral";

/// Types, each with what it is a kind of, and whether it has objects of its own.
const TYPES: [(&str, Option<&str>, bool); 19] = [
    ("object", None, false),
    ("interface", None, false),
    ("user-creatable", Some("interface"), false),
    ("container", Some("object"), true),
    ("event-loop-base", Some("object"), false),
    ("iothread", Some("event-loop-base"), true),
    ("secret_common", Some("object"), false),
    ("secret", Some("secret_common"), true),
    ("throttle-group", Some("object"), true),
    ("tls-creds", Some("object"), false),
    ("tls-creds-x509", Some("tls-creds"), true),
    ("authz", Some("object"), false),
    ("authz-list", Some("authz"), true),
    ("authz-simple", Some("authz"), true),
    ("chardev", Some("object"), false),
    ("chardev-fd", Some("chardev"), false),
    ("chardev-socket", Some("chardev"), true),
    ("chardev-stdio", Some("chardev-fd"), true),
    ("chardev-null", Some("chardev"), true),
];

/// Those that `object-add` makes.
const CREATABLE: [&str; 6] = [
    "iothread",
    "secret",
    "throttle-group",
    "tls-creds-x509",
    "authz-list",
    "authz-simple",
];

/// The types that are kinds of another one.
pub(in crate::daemon) fn list_types(implements: Option<&str>, with_abstract: bool) -> Value {
    let parent = |name: &str| {
        let found = TYPES.iter().find(|(known, _, _)| *known == name);
        found.and_then(|(_, parent, _)| *parent)
    };
    let is_kind = |name: &str, wanted: &str| {
        let mut at = Some(name);
        while let Some(name) = at {
            if name == wanted {
                return true;
            }
            at = parent(name);
        }
        CREATABLE.contains(&name) && matches!(wanted, "user-creatable" | "interface")
    };
    let all = TYPES
        .iter()
        .filter(|(name, _, _)| implements.is_none_or(|wanted| is_kind(name, wanted)));
    let all = all.filter(|(_, _, is_concrete)| *is_concrete || with_abstract);
    all.map(|(name, parent, is_concrete)| {
        let mut entry = json!({ "name": name });
        if let Some(parent) = parent {
            entry["parent"] = (*parent).into();
        }
        if !is_concrete {
            entry["abstract"] = true.into();
        }
        entry
    })
    .collect()
}

impl Control {
    fn find_place(&self, path: &str) -> Result<Place, CommandError> {
        if path.is_empty() {
            return Err(generic("Path '' is ambiguous"));
        }
        let absolute = match path.trim_end_matches('/') {
            "" => ROOT.to_owned(),
            trimmed => trimmed.to_owned(),
        };
        let containers = [ROOT, OBJECTS, CHARDEVS, MACHINE, PERIPHERAL];
        let mut containers = containers.into_iter();
        let is_here = |container: &&str| {
            let relative = container.trim_start_matches('/');
            *container == absolute || (!relative.is_empty() && relative == absolute)
        };
        if let Some(container) = containers.find(is_here) {
            return Ok(Place::Container(container));
        }
        let id_in = |container: &str| match absolute.strip_prefix(container) {
            Some(rest) => rest.strip_prefix('/'),
            None => Some(absolute.as_str()).filter(|path| !path.contains('/')),
        };
        if let Some(id) = id_in(OBJECTS).filter(|id| self.objects.get(id).is_some()) {
            return Ok(Place::Object(id.to_owned()));
        }
        if self.has_device(&absolute) {
            return Ok(Place::Device);
        }
        let is_chardev = |id: &&str| self.chardevs.iter().any(|known| known == id);
        if id_in(CHARDEVS).filter(is_chardev).is_some() {
            return Ok(Place::Chardev);
        }
        Err(CommandError::device_not_found(path))
    }

    /// The names in a container, each with what it is a child of.
    fn names_in(&self, container: &str) -> Vec<(String, String)> {
        let child = |name: &str, kind: &str| (name.to_owned(), format!("child<{kind}>"));
        match container {
            ROOT => ["objects", "chardevs", "machine"]
                .map(|name| child(name, "container"))
                .into(),
            MACHINE => vec![child("peripheral", "container")],
            OBJECTS => {
                let all = self.objects.all.iter();
                all.map(|(id, object)| child(id, object.type_name()))
                    .collect()
            }
            CHARDEVS => {
                let all = self.chardevs.iter();
                all.map(|id| child(id, "chardev")).collect()
            }
            _ => {
                let devices = self.backends.iter().filter_map(|backend| backend.device());
                let named = devices.filter_map(|device| {
                    let id = device.id.as_deref()?;
                    Some(child(id, device.model.name()))
                });
                named.collect()
            }
        }
    }

    pub(in crate::daemon) fn qom_list(&self, path: &str) -> Reply {
        let properties = match self.find_place(path)? {
            Place::Container(container) => self.names_in(container),
            Place::Object(id) => self.objects.get(&id).map_or_else(Vec::new, |object| {
                let names = object.properties().into_iter();
                names
                    .map(|(name, kind, _)| (name, kind.to_owned()))
                    .collect()
            }),
            Place::Chardev => Vec::new(),
            Place::Device => vec![("drive".to_owned(), "str".to_owned())],
        };
        let own = ("type".to_owned(), "string".to_owned());
        let all = std::iter::once(own).chain(properties);
        Ok(all
            .map(|(name, kind)| json!({ "name": name, "type": kind }))
            .collect())
    }

    pub(in crate::daemon) fn qom_get(&self, path: &str, property: &str) -> Reply {
        let (kind, value) = match self.find_place(path)? {
            Place::Device => return self.device_get(path, property),
            Place::Chardev => ("chardev", None),
            Place::Container(container) => {
                let names = self.names_in(container);
                let is_there = names.iter().any(|(name, _)| name == property);
                let base = if container == ROOT { "" } else { container };
                let path = format!("{base}/{property}");
                ("container", is_there.then_some(path.into()))
            }
            Place::Object(id) => {
                let object = self.objects.get(&id);
                let properties = object.map_or_else(Vec::new, Object::properties);
                let mut properties = properties.into_iter();
                let found = properties.find(|(name, _, _)| name == property);
                let kind = object.map_or("object", Object::type_name);
                (kind, found.map(|(_, _, value)| value))
            }
        };
        match value {
            Some(value) => Ok(value),
            None if property == "type" => Ok(kind.into()),
            None => Err(no_property(kind, property)),
        }
    }

    pub(in crate::daemon) async fn qom_set(
        &mut self,
        path: &str,
        property: &str,
        value: &Value,
    ) -> Reply {
        match self.find_place(path)? {
            Place::Device => self.device_set(path, property, value).await,
            Place::Object(id) => self.set_property(&id, property, value),
            Place::Chardev if property == "type" => Err(not_writable("chardev", property)),
            Place::Chardev => Err(no_property("chardev", property)),
            Place::Container(container) => {
                let names = self.names_in(container);
                let is_there = names.iter().any(|(name, _)| name == property);
                if is_there || property == "type" {
                    Err(not_writable("container", property))
                } else {
                    Err(no_property("container", property))
                }
            }
        }
    }

    fn set_property(&mut self, id: &str, property: &str, value: &Value) -> Reply {
        let Some(object) = self.objects.get_mut(id) else {
            return Err(CommandError::device_not_found(id));
        };
        let kind = object.type_name();
        if property == "type" {
            return Err(not_writable(kind, property));
        }
        let properties = object.properties();
        if !properties.iter().any(|(name, _, _)| name == property) {
            return Err(no_property(kind, property));
        }
        match object {
            Object::ThrottleGroup(current) => {
                if property != "limits" {
                    return Err(generic("Property cannot be set after initialization"));
                }
                let changed = current
                    .changed(value)
                    .map_err(|error| generic(error.to_string()))?;
                self.graph
                    .set_throttle_limits(&self.shard, id, limits(&changed))
                    .map_err(|error| generic(error.to_string()))?;
                *current = changed;
            }
            Object::Iothread(thread) => thread.set(property, value)?,
            Object::Secret(secret) => secret.set(property, value)?,
            Object::TlsCreds(_) | Object::AuthzList(_) | Object::AuthzSimple(_) => {
                return Err(generic("Property cannot be set after initialization"));
            }
        }
        Ok(json!({}))
    }
}

fn no_property(kind: &str, property: &str) -> CommandError {
    generic(format!("Property '{kind}.{property}' not found"))
}

fn not_writable(kind: &str, property: &str) -> CommandError {
    generic(format!("Property '{kind}.{property}' is not writable"))
}

fn wrong_type(property: &str, expected: &str) -> CommandError {
    generic(format!(
        "Invalid parameter type for '{property}', expected: {expected}"
    ))
}

impl Object {
    fn type_name(&self) -> &'static str {
        match self {
            Self::ThrottleGroup(_) => "throttle-group",
            Self::Iothread(_) => "iothread",
            Self::Secret(_) => "secret",
            Self::TlsCreds(_) => "tls-creds-x509",
            Self::AuthzList(_) => "authz-list",
            Self::AuthzSimple(_) => "authz-simple",
        }
    }

    /// Names, types and values.
    fn properties(&self) -> Vec<(String, &'static str, Value)> {
        match self {
            Self::ThrottleGroup(limits) => {
                let limits: Map<String, Value> = limits.to_json();
                let own = limits
                    .iter()
                    .map(|(key, value)| (format!("x-{key}"), "int", value.clone()))
                    .collect::<Vec<_>>();
                let whole = ("limits".to_owned(), "ThrottleLimits", Value::Object(limits));
                std::iter::once(whole).chain(own).collect()
            }
            Self::Iothread(thread) => {
                let options = &thread.options;
                [
                    ("thread-pool-min", options.thread_pool_min.unwrap_or(0)),
                    (
                        "thread-pool-max",
                        options.thread_pool_max.unwrap_or(POOL_MAX),
                    ),
                    ("aio-max-batch", options.aio_max_batch.unwrap_or(0)),
                    ("poll-max-ns", options.poll_max_ns.unwrap_or(POLL_MAX_NS)),
                    ("poll-grow", options.poll_grow.unwrap_or(0)),
                    ("poll-shrink", options.poll_shrink.unwrap_or(0)),
                ]
                .map(|(name, value)| (name.to_owned(), "int", value.into()))
                .into()
            }
            Self::Secret(secret) => [
                ("iv", "string", secret.iv.as_str()),
                ("keyid", "string", &secret.keyid),
                ("format", "QCryptoSecretFormat", secret.format.word()),
                ("file", "string", &secret.file),
                ("data", "string", &secret.data),
            ]
            .map(|(name, kind, value)| (name.to_owned(), kind, value.into()))
            .into(),
            Self::TlsCreds(creds) => creds.properties(),
            Self::AuthzList(list) => super::tls::list_properties(list),
            Self::AuthzSimple(one) => {
                vec![("identity".into(), "string", one.identity.as_str().into())]
            }
        }
    }
}

impl Iothread {
    fn set(&mut self, property: &str, value: &Value) -> Result<(), CommandError> {
        let Some(value) = value.as_i64() else {
            return Err(wrong_type(property, "integer"));
        };
        let mut options = self.options;
        let place = match property {
            "thread-pool-min" => &mut options.thread_pool_min,
            "thread-pool-max" => &mut options.thread_pool_max,
            "aio-max-batch" => &mut options.aio_max_batch,
            "poll-max-ns" => &mut options.poll_max_ns,
            "poll-grow" => &mut options.poll_grow,
            "poll-shrink" => &mut options.poll_shrink,
            _ => return Err(no_property("iothread", property)),
        };
        *place = Some(value);
        self.options = options
            .check()
            .map_err(|error| generic(error.to_string()))?;
        Ok(())
    }
}

impl Secret {
    /// Changes what is shown. The secret itself was settled when it was made.
    fn set(&mut self, property: &str, value: &Value) -> Result<(), CommandError> {
        let Some(text) = value.as_str() else {
            return Err(wrong_type(property, "string"));
        };
        let place = match property {
            "data" => &mut self.data,
            "file" => &mut self.file,
            "keyid" => &mut self.keyid,
            "iv" => &mut self.iv,
            _ => {
                self.format = SecretFormat::from_word(text).ok_or_else(|| {
                    let refusal = format!("Parameter 'format' does not accept value '{text}'");
                    generic(refusal)
                })?;
                return Ok(());
            }
        };
        text.clone_into(place);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(types: &Value) -> Vec<&str> {
        let types = types.as_array().into_iter().flatten();
        types.filter_map(|entry| entry["name"].as_str()).collect()
    }

    #[test]
    fn types_are_found_by_what_they_are() {
        let threads = list_types(Some("iothread"), false);
        assert_eq!(
            threads,
            json!([{ "name": "iothread", "parent": "event-loop-base" }])
        );
        let creatable = list_types(Some("user-creatable"), false);
        assert_eq!(names(&creatable), CREATABLE);
        let loops = list_types(Some("event-loop-base"), true);
        assert_eq!(names(&loops), ["event-loop-base", "iothread"]);
        assert_eq!(loops[0]["abstract"], true);
        assert_eq!(list_types(Some("zz"), true), json!([]));
        let all = list_types(None, false);
        assert!(!names(&all).contains(&"object"));
    }

    #[test]
    fn numbers_of_a_thread_are_checked_together() {
        let mut thread = Iothread {
            options: ringback_qmp_shim::command_line::object::IothreadOptions::default(),
            thread_id: 1,
        };
        thread.set("poll-max-ns", &json!(4)).expect("a good number");
        for (property, value, text) in [
            (
                "poll-max-ns",
                json!(-4),
                "poll-max-ns value must be in range [0, 9223372036854775807]",
            ),
            (
                "poll-grow",
                json!("x"),
                "Invalid parameter type for 'poll-grow', expected: integer",
            ),
            (
                "thread-pool-min",
                json!(99),
                "bad thread-pool-min/thread-pool-max values",
            ),
        ] {
            let error = thread.set(property, &value).expect_err("a bad number");
            assert_eq!(error.desc, text);
        }
        assert_eq!(thread.options.poll_max_ns, Some(4));
        assert_eq!(thread.options.thread_pool_min, None);
    }
}
