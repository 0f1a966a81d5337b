//! How the arguments of a command are declared.
//!
//! [`arguments!`] makes a structure and its reader from one list of members. The list is in
//! the order of QEMU's schema, since of several mistakes the first one is reported.

use serde_json::Value;

use crate::blockdev::{BlockdevOptions, Child};
use crate::command_line::ArgumentError;
use crate::error::Result;
use crate::visit::{Alternate, Reader, Word};

/// What a request or an object in it has as members.
pub(crate) trait Arguments: Sized {
    /// Reads an object to its end.
    fn read_object(reader: Reader<'_>) -> Result<Self>;
}

impl<T: Arguments> Arguments for Box<T> {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        T::read_object(reader).map(Self::new)
    }
}

/// What the schema cannot say is an error of the command when it runs, not of its
/// arguments: only those are told at once.
pub(crate) fn set_aside<T>(
    read: std::result::Result<T, ArgumentError>,
) -> Result<std::result::Result<T, ArgumentError>> {
    match read {
        Err(ArgumentError::Option(error)) => Err(error),
        read => Ok(read),
    }
}

/// No members.
impl Arguments for () {
    fn read_object(reader: Reader<'_>) -> Result<Self> {
        reader.finish()
    }
}

/// Members that may stand in one object with others.
pub(crate) trait Members: Sized {
    /// Reads these members and does not look at others.
    fn read_members(reader: &mut Reader<'_>) -> Result<Self>;
}

impl<T: Members> Members for Box<T> {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        T::read_members(reader).map(Self::new)
    }
}

/// The type of a member. `None` says that the member is not there.
pub(crate) trait Argument: Sized {
    /// Reads the member of that name.
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>>;
}

/// A member: an [`Argument`], which must be there, or an option of one.
pub(crate) trait Member: Sized {
    /// Reads the member of that name.
    fn read_member(reader: &mut Reader<'_>, name: &'static str) -> Result<Self>;
}

impl<T: Argument> Member for T {
    fn read_member(reader: &mut Reader<'_>, name: &'static str) -> Result<Self> {
        reader.required(name, T::read_argument)
    }
}

impl<T: Argument> Member for Option<T> {
    fn read_member(reader: &mut Reader<'_>, name: &'static str) -> Result<Self> {
        T::read_argument(reader, name)
    }
}

/// Types that a method of the reader reads.
macro_rules! read_by {
    ($($type:ty: $method:ident,)*) => {
        $(impl Argument for $type {
            fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
                reader.$method(name)
            }
        })*
    };
}

read_by! {
    String: text,
    bool: boolean,
    i64: signed,
    u64: unsigned,
    u32: unsigned_32,
    u16: unsigned_16,
    Vec<u64>: list_of_unsigned,
}

impl<W: Word> Argument for W {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        reader.word(name)
    }
}

impl<W: Word> Argument for Vec<W> {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        reader.list_of_words(name)
    }
}

impl Argument for Value {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        Ok(reader.any(name).cloned())
    }
}

/// A node by name, or the options of a new one.
impl Argument for Child {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        let child = reader.alternate(name, "BlockdevRef")?;
        let read = |child| match child {
            Alternate::Text(node) => Ok(Self::Node(node.to_owned())),
            Alternate::Object(inner) => {
                BlockdevOptions::read(inner).map(|options| Self::Options(Box::new(options)))
            }
        };
        child.map(read).transpose()
    }
}

/// Reads a list of objects.
pub(crate) fn read_list<T>(
    reader: &mut Reader<'_>,
    name: &'static str,
    mut read: impl FnMut(Reader<'_>) -> Result<T>,
) -> Result<Option<Vec<T>>> {
    let Some(elements) = reader.objects(name)? else {
        return Ok(None);
    };
    let elements = elements.into_iter().map(|element| read(element?));
    elements.collect::<Result<_>>().map(Some)
}

/// Declares a set of members: `field: Type = "name"`, in the order in which they are read.
macro_rules! arguments {
    ($(
        $(#[$attribute:meta])*
        pub struct $type:ident {
            $($(#[$doc:meta])* $field:ident: $member:ty = $name:literal,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $type {
            $($(#[$doc])* pub $field: $member,)*
        }

        impl $crate::command::argument::Members for $type {
            fn read_members(reader: &mut $crate::visit::Reader<'_>) -> $crate::error::Result<Self> {
                Ok(Self {
                    $($field: $crate::command::argument::Member::read_member(reader, $name)?,)*
                })
            }
        }

        $crate::command::argument::objects! { $type, }
    )*};
}
pub(crate) use arguments;

/// Says that these [`Members`] are all that an object has.
macro_rules! objects {
    ($($type:ty,)*) => {$(
        impl $crate::command::argument::Arguments for $type {
            fn read_object(mut reader: $crate::visit::Reader<'_>) -> $crate::error::Result<Self> {
                let members = $crate::command::argument::Members::read_members(&mut reader)?;
                reader.finish()?;
                Ok(members)
            }
        }

        impl $crate::command::argument::Argument for $type {
            fn read_argument(
                reader: &mut $crate::visit::Reader<'_>,
                name: &'static str,
            ) -> $crate::error::Result<Option<Self>> {
                let inner = reader.object(name)?;
                inner.map($crate::command::argument::Arguments::read_object).transpose()
            }
        }
    )*};
}
pub(crate) use objects;
