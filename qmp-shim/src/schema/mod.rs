//! The schema: which commands and events there are, and the shapes of what goes in and out,
//! as `query-qmp-schema` tells it.
//!
//! It is written down in the text files beside this one, in the order in which members are
//! read. A definition stands in a line of its own, what belongs to it is indented:
//!
//! ```text
//! enum JobStatus: running | paused          a line that ends with `|` goes on
//! alternate BlockdevRef: BlockdevOptions | str
//! object BlockdevBackup
//!     include BackupCommon                  the members of another object
//!     target    str                         a member and its type
//!     speed?    int                         a member that may be missing
//! object BlockdevOptions tag driver
//!     driver    BlockdevDriver
//!     when file BlockdevOptionsFile         more members if the tag has this value
//! command blockdev-add BlockdevOptions      a command whose arguments have a name
//! command job-pause                         a command with its arguments
//!     id        str
//! command query-jobs -> [JobInfo]           a command that answers a list
//! event JOB_STATUS_CHANGE
//!     id        str
//! ```
//!
//! The types of leaves are `str`, `bool`, `number`, `null`, `any` and the integers `int` (signed,
//! of 64 bits), `uint16`, `uint32`, `uint64` and `size` (the same as `uint64`). Features
//! stand at the end of a line, as `!deprecated`.
//!
//! What the files say of arguments is what [`Command::read`](crate::command::Command::read)
//! takes: tests make requests out of the schema, good and bad ones, and compare the schema
//! with that of qemu-storage-daemon. ringback may have less than QEMU, and says so here.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

mod text;

use text::{Definition, Features, Member, Object, Shape, TypeRef};

const FILES: [&str; 8] = [
    include_str!("machine.txt"),
    include_str!("options.txt"),
    include_str!("nodes.txt"),
    include_str!("queries.txt"),
    include_str!("jobs.txt"),
    include_str!("objects.txt"),
    include_str!("exports.txt"),
    include_str!("devices.txt"),
];

/// The object without members: what commands without arguments take.
const EMPTY: &str = "Empty";

/// Every definition, in the order of the files.
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| match Schema::parse(&FILES) {
    Ok(schema) => schema,
    Err(error) => unreachable!("the schema is a constant and tests read it: {error}"),
});

/// The answer to `query-qmp-schema`: a list of entries as QEMU's introspection has them. Where
/// QEMU gives types a number for a name, they have their own here.
#[must_use]
pub fn introspect() -> Value {
    SCHEMA.introspect()
}

struct Schema {
    definitions: Vec<Definition>,
}

impl Schema {
    fn parse(files: &[&'static str]) -> Result<Self, String> {
        let mut definitions = Vec::new();
        for file in files {
            text::parse(file, &mut definitions)?;
        }
        Ok(Self { definitions })
    }

    fn find(&self, name: &str) -> Option<&Definition> {
        self.definitions.iter().find(|known| known.name == name)
    }

    fn object(&self, name: &str) -> Option<&Object> {
        match &self.find(name)?.shape {
            Shape::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The members of an object, with those that it includes.
    fn members<'a>(&'a self, object: &'a Object) -> Vec<&'a Member> {
        let included = object.includes.iter().filter_map(|name| self.object(name));
        let included = included.flat_map(|object| &object.members);
        included.chain(&object.members).collect()
    }

    /// The values that an object's tag can have, each with the name of the object that it adds.
    fn cases(&self, object: &Object) -> Vec<(&'static str, &'static str)> {
        let Some(tag) = object.tag else {
            return Vec::new();
        };
        let members = self.members(object);
        let tag = members.iter().find(|member| member.name == tag);
        let words = tag.and_then(|tag| self.find(tag.kind.name));
        let Some(Shape::Enum(words)) = words.map(|definition| &definition.shape) else {
            return Vec::new();
        };
        let added = |word: &str| {
            let case = object.cases.iter().find(|(case, _)| *case == word);
            case.map_or(EMPTY, |(_, name)| name)
        };
        words.iter().map(|word| (*word, added(word))).collect()
    }

    fn introspect(&self) -> Value {
        let builtins = [
            ("str", "string"),
            ("int", "int"),
            ("number", "number"),
            ("bool", "boolean"),
            ("null", "null"),
            ("any", "value"),
        ];
        let builtins = builtins
            .map(|(name, kind)| json!({"name": name, "meta-type": "builtin", "json-type": kind}));
        let mut entries = Vec::from(builtins);
        let mut elements = BTreeSet::new();
        for definition in &self.definitions {
            let mut entry = Map::new();
            entry.insert("name".to_owned(), definition.name.as_str().into());
            self.introspect_shape(&definition.shape, &mut entry, &mut elements);
            insert_features(&mut entry, &definition.features);
            entries.push(entry.into());
        }
        let list = |element| json!({"name": format!("[{element}]"), "meta-type": "array", "element-type": element});
        entries.extend(elements.into_iter().map(list));
        entries.into()
    }

    /// `elements` collects the types of which there are lists.
    fn introspect_shape(
        &self,
        shape: &Shape,
        entry: &mut Map<String, Value>,
        elements: &mut BTreeSet<&'static str>,
    ) {
        let mut name_of = |kind: TypeRef| {
            let name = builtin_name(kind.name);
            if kind.is_list {
                elements.insert(name);
                format!("[{name}]")
            } else {
                name.to_owned()
            }
        };
        let mut say = |key: &str, value: Value| entry.insert(key.to_owned(), value);
        match shape {
            Shape::Enum(words) => {
                say("meta-type", "enum".into());
                let members = words.iter().map(|word| json!({"name": word}));
                say("members", members.collect());
                say("values", words.iter().copied().collect());
            }
            Shape::Alternate(branches) => {
                say("meta-type", "alternate".into());
                let branches = branches.iter().map(|kind| json!({"type": name_of(*kind)}));
                say("members", branches.collect());
            }
            Shape::Object(object) => {
                say("meta-type", "object".into());
                let members = self.members(object).into_iter().map(|member| {
                    let mut entry = Map::new();
                    entry.insert("name".to_owned(), member.name.into());
                    entry.insert("type".to_owned(), name_of(member.kind).into());
                    if member.is_optional {
                        entry.insert("default".to_owned(), Value::Null);
                    }
                    insert_features(&mut entry, &member.features);
                    Value::from(entry)
                });
                say("members", members.collect());
                if let Some(tag) = object.tag {
                    say("tag", tag.into());
                    let cases = self.cases(object).into_iter();
                    let cases = cases.map(|(word, name)| json!({"case": word, "type": name}));
                    say("variants", cases.collect());
                }
            }
            Shape::Command { arguments, returns } => {
                say("meta-type", "command".into());
                say("arg-type", arguments.as_str().into());
                let returns = returns.map_or_else(|| EMPTY.to_owned(), name_of);
                say("ret-type", returns.into());
            }
            Shape::Event { data } => {
                say("meta-type", "event".into());
                say("arg-type", data.as_str().into());
            }
        }
    }
}

/// QEMU tells of one kind of integers only.
fn builtin_name(name: &'static str) -> &'static str {
    match name {
        "uint16" | "uint32" | "uint64" | "size" => "int",
        other => other,
    }
}

fn insert_features(entry: &mut Map<String, Value>, features: &Features) {
    if !features.is_empty() {
        let features = features.iter().copied().collect();
        entry.insert("features".to_owned(), features);
    }
}

#[cfg(test)]
mod tests;
