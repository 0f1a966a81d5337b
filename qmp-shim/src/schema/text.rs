//! The text in which the schema is written.

use super::EMPTY;

/// What is special about a definition or a member.
pub(super) type Features = Vec<&'static str>;

/// One definition.
pub(super) struct Definition {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) features: Features,
}

/// What a definition says.
pub(super) enum Shape {
    /// Words.
    Enum(Vec<&'static str>),
    /// One of several types.
    Alternate(Vec<TypeRef>),
    /// Members.
    Object(Object),
    /// The name of an object with the arguments, and the type of the answer.
    Command {
        arguments: String,
        returns: Option<TypeRef>,
    },
    /// The name of an object with the data.
    Event { data: String },
}

/// An object's members.
#[derive(Default)]
pub(super) struct Object {
    /// Objects whose members come first.
    pub(super) includes: Vec<&'static str>,
    pub(super) members: Vec<Member>,
    /// The member whose value says which members are added.
    pub(super) tag: Option<&'static str>,
    /// Values of the tag, each with the name of an object.
    pub(super) cases: Vec<(&'static str, &'static str)>,
}

/// One member.
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) is_optional: bool,
    pub(super) kind: TypeRef,
    pub(super) features: Features,
}

/// A type, or a list of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeRef {
    pub(super) name: &'static str,
    pub(super) is_list: bool,
}

impl TypeRef {
    fn parse(text: &'static str) -> Self {
        let inner = text.strip_prefix('[');
        let inner = inner.and_then(|inner| inner.strip_suffix(']'));
        Self {
            name: inner.unwrap_or(text),
            is_list: inner.is_some(),
        }
    }
}

/// Reads a file and appends its definitions.
pub(super) fn parse(file: &'static str, definitions: &mut Vec<Definition>) -> Result<(), String> {
    let lines = file.lines();
    let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut next = lines.next();
    while let Some(line) = next {
        let mut inner = Vec::new();
        next = lines.next();
        while let Some(line) = next.filter(|line| line.starts_with(' ')) {
            inner.push(line.trim());
            next = lines.next();
        }
        let error = || format!("not understood: {line}");
        define(line, &inner, definitions).ok_or_else(error)?;
    }
    Ok(())
}

fn define(
    line: &'static str,
    inner: &[&'static str],
    definitions: &mut Vec<Definition>,
) -> Option<()> {
    let (what, rest) = line.split_once(' ')?;
    let words = || {
        let (name, first) = rest.split_once(':')?;
        let lines = [first].into_iter().chain(inner.iter().copied());
        let words = lines.flat_map(|line| line.split('|')).map(str::trim);
        let words = words.filter(|word| !word.is_empty()).collect();
        Some((name.to_owned(), words))
    };
    let mut features = Features::new();
    let (name, shape) = match what {
        "enum" => {
            let (name, words) = words()?;
            (name, Shape::Enum(words))
        }
        "alternate" => {
            let (name, words) = words()?;
            let branches = words.into_iter().map(TypeRef::parse).collect();
            (name, Shape::Alternate(branches))
        }
        "object" => {
            let mut words = rest.split_whitespace();
            let name = words.next()?.to_owned();
            let tag = match words.next() {
                Some("tag") => Some(words.next()?),
                Some(_) => return None,
                None => None,
            };
            (name, Shape::Object(parse_object(tag, inner)?))
        }
        "command" | "event" => {
            let mut words = rest.split_whitespace().peekable();
            let name = words.next()?.to_owned();
            let is_named = |word: &&str| *word != "->" && !word.starts_with('!');
            let arguments = match words.next_if(is_named) {
                Some(arguments) => arguments.to_owned(),
                None if inner.is_empty() => EMPTY.to_owned(),
                None => {
                    let arguments = format!("{name}-arg");
                    definitions.push(Definition {
                        name: arguments.clone(),
                        shape: Shape::Object(parse_object(None, inner)?),
                        features: Features::new(),
                    });
                    arguments
                }
            };
            let returns = match words.next_if(|word| *word == "->") {
                Some(_) => Some(TypeRef::parse(words.next()?)),
                None => None,
            };
            features = parse_features(words)?;
            let shape = match what {
                "command" => Shape::Command { arguments, returns },
                _ => Shape::Event { data: arguments },
            };
            (name, shape)
        }
        _ => return None,
    };
    definitions.push(Definition {
        name,
        shape,
        features,
    });
    Some(())
}

fn parse_object(tag: Option<&'static str>, lines: &[&'static str]) -> Option<Object> {
    let mut object = Object {
        tag,
        ..Object::default()
    };
    for line in lines {
        let mut words = line.split_whitespace();
        match words.next()? {
            "include" => object.includes.push(words.next()?),
            "when" => object.cases.push((words.next()?, words.next()?)),
            name => {
                let required = name.strip_suffix('?');
                object.members.push(Member {
                    name: required.unwrap_or(name),
                    is_optional: required.is_some(),
                    kind: TypeRef::parse(words.next()?),
                    features: parse_features(words)?,
                });
            }
        }
    }
    Some(object)
}

fn parse_features(words: impl Iterator<Item = &'static str>) -> Option<Features> {
    words.map(|word| word.strip_prefix('!')).collect()
}
