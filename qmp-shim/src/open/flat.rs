//! Flat options: `{"file": {"filename": "x"}}` is `file.filename`.

use serde_json::{Map, Value};

use crate::error::{OptionError, Result};
use crate::keyval::make_lists;

/// Most options in one set. Their readers look at all of them again and again.
pub const MAX_OPTIONS: usize = 4096;
/// Longest name of an option, in bytes.
pub const MAX_OPTION_NAME: usize = 1024;

/// Checks the bounds of a flat set.
pub(super) fn check_bounds(flat: &Map<String, Value>) -> Result<()> {
    check_count(flat.len())?;
    flat.keys().try_for_each(|name| check_name(name))
}

fn check_name(name: &str) -> Result<()> {
    if name.len() > MAX_OPTION_NAME {
        return Err(OptionError::OptionNameTooLong {
            start: name.chars().take(40).collect(),
            max: MAX_OPTION_NAME,
        });
    }
    Ok(())
}

fn check_count(count: usize) -> Result<()> {
    if count > MAX_OPTIONS {
        return Err(OptionError::TooManyOptions { max: MAX_OPTIONS });
    }
    Ok(())
}

/// Makes a tree flat: dots between names, and indices for elements of lists. Objects and
/// lists that are empty stay what they are.
///
/// # Errors
///
/// When there are more than [`MAX_OPTIONS`], or a name gets longer than [`MAX_OPTION_NAME`].
pub fn flatten(tree: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut flat = Map::new();
    // Of `{"a.b": 1, "a": {"b": 2}}` QEMU takes the inner one: it comes last.
    let (inner, plain): (Vec<_>, Vec<_>) = tree.iter().partition(|(_, value)| has_members(value));
    for (name, value) in plain.into_iter().chain(inner) {
        add(&mut flat, name.clone(), value)?;
    }
    Ok(flat)
}

fn has_members(value: &Value) -> bool {
    match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        _ => false,
    }
}

/// Recursion ends where names get too long: each level makes them longer.
fn add(flat: &mut Map<String, Value>, name: String, value: &Value) -> Result<()> {
    check_name(&name)?;
    match value {
        Value::Object(members) if !members.is_empty() => members
            .iter()
            .try_for_each(|(key, member)| add(flat, format!("{name}.{key}"), member)),
        Value::Array(elements) if !elements.is_empty() => elements
            .iter()
            .enumerate()
            .try_for_each(|(index, element)| add(flat, format!("{name}.{index}"), element)),
        leaf => {
            flat.insert(name, leaf.clone());
            check_count(flat.len())
        }
    }
}

/// The tree of flat options.
pub(super) fn nest(flat: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut root = Map::new();
    for (name, value) in flat {
        let conflict = || OptionError::UsedInconsistently { path: name.clone() };
        let mut members = &mut root;
        let mut rest = name.as_str();
        while let Some((key, inner)) = rest.split_once('.') {
            members = members
                .entry(key)
                .or_insert_with(|| Value::Object(Map::new()))
                .as_object_mut()
                .ok_or_else(conflict)?;
            rest = inner;
        }
        if members.insert(rest.to_owned(), value.clone()).is_some() {
            return Err(conflict());
        }
    }
    make_lists(&mut root, "")?;
    Ok(root)
}

/// Numbers and booleans as texts.
pub(super) fn as_texts(mut options: Map<String, Value>) -> Map<String, Value> {
    for value in options.values_mut() {
        let text = match value {
            Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
            Value::Number(number) => number.to_string(),
            Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        *value = Value::String(text);
    }
    options
}
