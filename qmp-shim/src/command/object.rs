//! Objects that are no nodes, and what can be asked of them.

use serde_json::Value;

use super::argument::{Arguments, arguments, set_aside};
use crate::command_line::{ArgumentError, ObjectOptions};
use crate::error::Result;
use crate::visit::Reader;

arguments! {
    /// Arguments of `object-del`.
    pub struct ObjectDel {
        /// The object.
        id: String = "id",
    }

    /// Arguments of `qom-list-types`.
    pub struct QomListTypes {
        /// Only types that are this, too.
        implements: Option<String> = "implements",
        /// Types without objects of their own, too; default false.
        is_abstract: Option<bool> = "abstract",
    }

    /// Arguments of `qom-list`.
    pub struct QomList {
        /// The object.
        path: String = "path",
    }

    /// Arguments of `qom-get`.
    pub struct QomGet {
        /// The object.
        path: String = "path",
        /// Which of its properties.
        property: String = "property",
    }

    /// Arguments of `qom-set`.
    pub struct QomSet {
        /// The object.
        path: String = "path",
        /// Which of its properties.
        property: String = "property",
        /// What it shall be.
        value: Value = "value",
    }
}

/// Arguments of `object-add`: the object to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectAdd {
    /// The object, or why what is asked for cannot be made although the schema allows it.
    pub object: std::result::Result<ObjectOptions, ArgumentError>,
}

impl Arguments for ObjectAdd {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        let object = set_aside(ObjectOptions::read(reader))?;
        Ok(Self { object })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::command::Command;

    #[test]
    fn what_the_schema_cannot_say_is_found_out_later() {
        let both = json!({"qom-type": "secret", "id": "s", "data": "x", "file": "y"});
        let arguments: Map<_, _> = both.as_object().expect("an object").clone();
        let Ok(Command::ObjectAdd(add)) = Command::read("object-add", &arguments) else {
            panic!("the schema allows it");
        };
        assert_eq!(add.object, Err(ArgumentError::SecretTwice));
        let bogus = json!({"qom-type": "bogus", "id": "s"});
        let arguments = bogus.as_object().expect("an object");
        let error = Command::read("object-add", arguments).expect_err("no such type");
        assert_eq!(
            error.desc,
            "Parameter 'qom-type' does not accept value 'bogus'"
        );
    }
}
