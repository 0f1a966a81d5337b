//! The schema against [`Command::read`]: requests are made out of it, good and bad ones.

use super::*;
use crate::command::{self, Command};

/// How deep objects stand inside of alternates; below that, alternates are strings.
const DEPTH: usize = 1;

/// What stands for a value of the wrong type, and for an unknown word or member.
const BOGUS: &str = "bogus";

/// Which members a made request has.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    Required,
    All,
}

/// Values of a type, so many that every case of a tagged object is there.
fn samples(kind: TypeRef, which: Which, depth: usize) -> Vec<Value> {
    if kind.is_list {
        let element = TypeRef {
            is_list: false,
            ..kind
        };
        // Short lists, since each is broken in many ways.
        let elements = samples(element, which, depth);
        return elements.chunks(2).map(Value::from).collect();
    }
    match kind.name {
        "str" => return vec!["x".into()],
        "bool" => return vec![true.into()],
        "null" => return vec![Value::Null],
        "any" => return vec![json!({"k": [1]})],
        "int" | "uint16" | "uint32" | "uint64" | "size" => return vec![1.into()],
        _ => {}
    }
    match &SCHEMA.find(kind.name).unwrap().shape {
        Shape::Enum(words) => words.iter().map(|word| Value::from(*word)).collect(),
        Shape::Alternate(branches) => {
            let fits = |branch: &&TypeRef| {
                let is_object = SCHEMA.object(branch.name).is_some();
                !is_object || (depth < DEPTH && which == Which::All)
            };
            let fitting = branches.iter().filter(fits);
            fitting
                .flat_map(|branch| samples(*branch, which, depth + 1))
                .collect()
        }
        Shape::Object(object) => objects(object, which, depth),
        Shape::Command { .. } | Shape::Event { .. } => panic!("{} is no type", kind.name),
    }
}

fn objects(object: &Object, which: Which, depth: usize) -> Vec<Value> {
    let cases = match SCHEMA.cases(object) {
        cases if cases.is_empty() => vec![("", EMPTY)],
        cases => cases,
    };
    let mut made = Vec::new();
    for (case, added) in cases {
        let added = SCHEMA.members(SCHEMA.object(added).unwrap());
        let members = SCHEMA.members(object).into_iter().chain(added);
        let members = members.filter(|member| which == Which::All || !member.is_optional);
        let values: Vec<(&str, Vec<Value>)> = members
            .map(|member| match object.tag {
                Some(tag) if tag == member.name => (member.name, vec![case.into()]),
                _ => (member.name, samples(member.kind, which, depth)),
            })
            .collect();
        // Not every combination, but every value of every member at least once.
        let most = values.iter().map(|(_, values)| values.len()).max();
        for index in 0..most.unwrap_or(1) {
            let members = values
                .iter()
                .map(|(name, values)| ((*name).to_owned(), values[index % values.len()].clone()));
            made.push(Value::Object(members.collect()));
        }
    }
    made
}

/// A broken value, and the error that it makes.
type Broken = (Value, String);

/// Where a value stands: its full name, and what QEMU calls it where it leaves the path out.
#[derive(Clone)]
struct Place {
    path: String,
    leaf: String,
}

impl Place {
    fn member(&self, name: &str) -> Self {
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        Self {
            path,
            leaf: name.to_owned(),
        }
    }

    fn element(&self, index: usize) -> Self {
        Self {
            path: format!("{}[{index}]", self.path),
            leaf: "null".to_owned(),
        }
    }

    fn wrong_type(&self, wanted: &str) -> String {
        format!(
            "Invalid parameter type for '{}', expected: {wanted}",
            self.path
        )
    }

    fn bad_word(&self) -> Broken {
        let text = format!("Parameter '{}' does not accept value '{BOGUS}'", self.leaf);
        (BOGUS.into(), text)
    }
}

/// Every way to break one thing in a good value.
fn broken(kind: TypeRef, good: &Value, place: &Place) -> Vec<Broken> {
    if kind.is_list {
        let mut made = vec![(json!({}), place.wrong_type("array"))];
        let element = TypeRef {
            is_list: false,
            ..kind
        };
        let elements = good.as_array().unwrap();
        for (index, value) in elements.iter().enumerate() {
            for (value, error) in broken(element, value, &place.element(index)) {
                let mut elements = elements.clone();
                elements[index] = value;
                made.push((elements.into(), error));
            }
        }
        return made;
    }
    let unsigned = |largest: Option<(u64, &str)>| {
        let text = format!("Parameter '{}' expects uint64", place.path);
        let mut made = vec![(BOGUS.into(), text.clone()), (json!(1.0), text)];
        if let Some((largest, wanted)) = largest {
            let text = format!("Parameter '{}' expects {wanted}", place.leaf);
            made.push(((largest + 1).into(), text));
        }
        made
    };
    match kind.name {
        "str" => return vec![(7.into(), place.wrong_type("string"))],
        "bool" => return vec![(BOGUS.into(), place.wrong_type("boolean"))],
        "int" => {
            let text = place.wrong_type("integer");
            let too_large = json!(1_u64 << 63);
            return vec![(BOGUS.into(), text.clone()), (too_large, text)];
        }
        "uint64" | "size" => return unsigned(None),
        "uint32" => return unsigned(Some((u32::MAX.into(), "uint32_t"))),
        "uint16" => return unsigned(Some((u16::MAX.into(), "uint16_t"))),
        "any" => return Vec::new(),
        _ => {}
    }
    match &SCHEMA.find(kind.name).unwrap().shape {
        Shape::Enum(_) => vec![(7.into(), place.wrong_type("string")), place.bad_word()],
        Shape::Alternate(branches) => {
            let text = format!(
                "Invalid parameter type for '{}', expected: {}",
                place.leaf, kind.name
            );
            let mut made = vec![(7.into(), text)];
            for branch in branches {
                match &SCHEMA.find(branch.name).map(|found| &found.shape) {
                    Some(Shape::Object(object)) if good.is_object() => {
                        made.extend(broken_object(object, good, place));
                    }
                    Some(Shape::Enum(_)) => made.push(place.bad_word()),
                    _ => {}
                }
            }
            made
        }
        Shape::Object(object) => {
            let mut made = broken_object(object, good, place);
            made.push((BOGUS.into(), place.wrong_type("object")));
            made
        }
        Shape::Command { .. } | Shape::Event { .. } => panic!("{} is no type", kind.name),
    }
}

fn broken_object(object: &Object, good: &Value, place: &Place) -> Vec<Broken> {
    let good = good.as_object().unwrap();
    let case = object.tag.map_or("", |tag| good[tag].as_str().unwrap());
    let cases = SCHEMA.cases(object);
    let added = cases.iter().find(|(word, _)| *word == case);
    let added = added.map_or(EMPTY, |(_, added)| added);
    let added = SCHEMA.members(SCHEMA.object(added).unwrap());
    let mut made = Vec::new();
    for member in SCHEMA.members(object).into_iter().chain(added) {
        let Some(value) = good.get(member.name) else {
            continue;
        };
        let place = place.member(member.name);
        for (value, error) in broken(member.kind, value, &place) {
            let mut members = good.clone();
            members.insert(member.name.to_owned(), value);
            made.push((members.into(), error));
        }
        if !member.is_optional {
            let mut members = good.clone();
            members.remove(member.name);
            let error = format!("Parameter '{}' is missing", place.path);
            made.push((members.into(), error));
        }
    }
    let mut members = good.clone();
    members.insert(BOGUS.to_owned(), 1.into());
    let error = format!("Parameter '{}' is unexpected", place.member(BOGUS).path);
    made.push((members.into(), error));
    made
}

/// Every command with the name of its arguments' object.
fn commands() -> impl Iterator<Item = (&'static str, &'static Object)> {
    SCHEMA.definitions.iter().filter_map(|definition| {
        let Shape::Command { arguments, .. } = &definition.shape else {
            return None;
        };
        let object = SCHEMA.object(arguments).expect("arguments are an object");
        Some((definition.name.as_str(), object))
    })
}

fn read(name: &str, arguments: &Value) -> std::result::Result<Command, String> {
    Command::read(name, arguments.as_object().unwrap()).map_err(|error| error.desc)
}

#[test]
fn the_schema_has_every_command_and_no_other() {
    let ours: BTreeSet<&str> = command::names().iter().copied().collect();
    let schema: BTreeSet<&str> = commands().map(|(name, _)| name).collect();
    assert_eq!(ours, schema);
    assert_eq!(ours.len(), command::names().len());
}

#[test]
fn every_name_is_defined_once_and_used() {
    let mut defined = BTreeSet::new();
    let mut used = BTreeSet::new();
    for definition in &SCHEMA.definitions {
        assert!(defined.insert(&*definition.name), "{}", definition.name);
        match &definition.shape {
            Shape::Enum(words) => assert!(!words.is_empty(), "{}", definition.name),
            Shape::Alternate(branches) => used.extend(branches.iter().map(|kind| kind.name)),
            Shape::Object(object) => {
                for (case, _) in &object.cases {
                    let is_known = SCHEMA.cases(object).iter().any(|(known, _)| known == case);
                    assert!(is_known, "{}: {case}", definition.name);
                }
                used.extend(object.includes.iter().copied());
                used.extend(object.cases.iter().map(|(_, name)| *name));
                used.extend(object.members.iter().map(|member| member.kind.name));
            }
            Shape::Command { arguments, returns } => {
                used.extend([&**arguments, &definition.name]);
                used.extend(returns.map(|kind| kind.name));
            }
            Shape::Event { data } => used.extend([&**data, &definition.name]),
        }
    }
    let builtins = [
        "str", "bool", "number", "null", "any", "int", "uint16", "uint32", "uint64", "size",
    ];
    defined.extend(builtins);
    assert_eq!(defined, used);
}

#[test]
fn what_the_schema_allows_is_read() {
    let mut count = 0;
    for (name, object) in commands() {
        for which in [Which::Required, Which::All] {
            for arguments in objects(object, which, 0) {
                let command = read(name, &arguments);
                // A group cannot have all of its limits at once.
                let is_group = arguments.get("qom-type") == Some(&"throttle-group".into());
                if is_group && which == Which::All {
                    let error = command.unwrap_err();
                    assert!(error.contains("set the same limit"), "{error}");
                    continue;
                }
                let command = command.map_err(|error| format!("{name} {arguments}: {error}"));
                assert_eq!(command.unwrap().name(), name);
                count += 1;
            }
        }
    }
    assert!(count > 400, "only {count} requests");
}

#[test]
fn what_the_schema_forbids_is_refused_in_the_words_of_qemu() {
    let place = Place {
        path: String::new(),
        leaf: String::new(),
    };
    let mut count = 0;
    for (name, object) in commands() {
        for arguments in objects(object, Which::All, 0) {
            for (arguments, error) in broken_object(object, &arguments, &place) {
                // A device takes whatever its driver has.
                if name == "device_add" && error.ends_with("unexpected") {
                    continue;
                }
                let found = read(name, &arguments).map(|command| command.name());
                assert_eq!(found, Err(error), "{name} {arguments}");
                count += 1;
            }
        }
    }
    assert!(count > 10_000, "only {count} requests");
}

#[test]
fn an_unreadable_text_is_an_error() {
    for text in [
        "thing X",
        "object X label y",
        "object X\n    name",
        "command x ->",
        "command x Y feature",
        "enum X a | b",
        "event",
    ] {
        assert!(Schema::parse(&[text]).is_err(), "{text}");
    }
}

#[test]
fn entries_look_as_in_qemu() {
    let schema = Schema::parse(&["object Empty\n\
         enum Colour: red |\n    green\n\
         alternate Paint: Colour | null\n\
         object Brush tag colour\n    colour Colour\n    hairs? [uint32] !unstable\n    when red Empty\n\
         command paint Brush -> [Paint] !deprecated\n\
         event DRY\n    sorry? bool\n"])
    .unwrap();
    let Value::Array(entries) = schema.introspect() else {
        panic!("it is a list");
    };
    let wanted = json!([
        {"name": "Empty", "meta-type": "object", "members": []},
        {"name": "Colour", "meta-type": "enum", "members": [{"name": "red"}, {"name": "green"}],
            "values": ["red", "green"]},
        {"name": "Paint", "meta-type": "alternate",
            "members": [{"type": "Colour"}, {"type": "null"}]},
        {"name": "Brush", "meta-type": "object", "members": [
            {"name": "colour", "type": "Colour"},
            {"name": "hairs", "type": "[int]", "default": null, "features": ["unstable"]}],
            "tag": "colour", "variants": [
                {"case": "red", "type": "Empty"}, {"case": "green", "type": "Empty"}]},
        {"name": "paint", "meta-type": "command", "arg-type": "Brush", "ret-type": "[Paint]",
            "features": ["deprecated"]},
        {"name": "DRY-arg", "meta-type": "object",
            "members": [{"name": "sorry", "type": "bool", "default": null}]},
        {"name": "DRY", "meta-type": "event", "arg-type": "DRY-arg"},
        {"name": "[Paint]", "meta-type": "array", "element-type": "Paint"},
        {"name": "[int]", "meta-type": "array", "element-type": "int"},
    ]);
    assert_eq!(Value::from(entries[6..].to_vec()), wanted);
    assert_eq!(
        entries[1],
        json!({"name": "int", "meta-type": "builtin", "json-type": "int"})
    );
}
