use super::*;
use crate::keyval;
use serde_json::json;

words! {
    /// A word for the tests.
    enum Colour {
        /// Red.
        Red = "red",
        /// Green.
        Green = "green",
    }
}

/// Reads member `m` of a JSON object or of `key=value` text. A macro, since a method
/// passed to a function would have to fit every lifetime of a reader.
macro_rules! read {
    ($text:expr, $method:expr) => {{
        let options = keyval::parse($text, None).unwrap();
        Reader::of(&options)
            .required("m", $method)
            .map_err(|error| error.to_string())
    }};
}

fn one(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
    Ok(reader.alternate(name, "Ref")?.map(|_| ()))
}

fn many(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
    for element in reader.alternates(name, "Ref")?.unwrap_or_default() {
        if let Alternate::Object(inner) = element? {
            inner.finish()?;
        }
    }
    Ok(Some(()))
}

fn object(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<()>> {
    Ok(reader.object(name)?.map(|_| ()))
}

fn error<T>(text: &str) -> std::result::Result<T, String> {
    Err(text.to_owned())
}

#[test]
fn texts_and_words() {
    assert_eq!(read!("m=x", Reader::text), Ok("x".to_owned()));
    assert_eq!(read!(r#"{"m":"x"}"#, Reader::text), Ok("x".to_owned()));
    assert_eq!(read!("m=green", Reader::word), Ok(Colour::Green));
    assert_eq!(Colour::default(), Colour::Red);
    for (text, wanted) in [
        ("n=x", "Parameter 'm' is missing"),
        ("m.a=x", "Parameters 'm.*' are unexpected"),
        ("m.0=x", "Parameters 'm.*' are unexpected"),
        (
            r#"{"m":1}"#,
            "Invalid parameter type for 'm', expected: string",
        ),
        (
            r#"{"m":null}"#,
            "Invalid parameter type for 'm', expected: string",
        ),
    ] {
        assert_eq!(read!(text, Reader::text), error(wanted), "{text}");
        assert_eq!(read!(text, Reader::word::<Colour>), error(wanted), "{text}");
    }
    let wanted = error("Parameter 'm' does not accept value 'blue'");
    assert_eq!(read!("m=blue", Reader::word::<Colour>), wanted);
}

#[test]
fn booleans() {
    for text in ["m=on", "m=yes", "m=true", "m=y", r#"{"m":true}"#] {
        assert_eq!(read!(text, Reader::boolean), Ok(true), "{text}");
    }
    for text in ["m=off", "m=no", "m=false", "m=n", r#"{"m":false}"#] {
        assert_eq!(read!(text, Reader::boolean), Ok(false), "{text}");
    }
    for text in ["m=", "m=1", "m=ON", "m=on "] {
        let wanted = error("Parameter 'm' expects 'on' or 'off'");
        assert_eq!(read!(text, Reader::boolean), wanted, "{text}");
    }
    let wanted = error("Invalid parameter type for 'm', expected: boolean");
    assert_eq!(read!(r#"{"m":"on"}"#, Reader::boolean), wanted);
    assert_eq!(
        read!("m.a=1", Reader::boolean),
        error("Parameters 'm.*' are unexpected")
    );
}

#[test]
fn integers() {
    assert_eq!(read!("m=-0x10", Reader::signed), Ok(-16));
    assert_eq!(read!(r#"{"m":-16}"#, Reader::signed), Ok(-16));
    assert_eq!(read!("m=-1", Reader::unsigned), Ok(u64::MAX));
    assert_eq!(read!(r#"{"m":-1}"#, Reader::unsigned), Ok(u64::MAX));
    assert_eq!(read!("m=4294967295", Reader::unsigned_32), Ok(u32::MAX));
    let wanted = error("Parameter 'm' expects integer");
    for text in ["m=", "m=1k", "m=1.5", "m=18446744073709551616"] {
        assert_eq!(read!(text, Reader::signed).map(|_| ()), wanted, "{text}");
        assert_eq!(read!(text, Reader::unsigned).map(|_| ()), wanted, "{text}");
    }
    for text in [
        r#"{"m":"1"}"#,
        r#"{"m":1.0}"#,
        r#"{"m":true}"#,
        r#"{"m":1e400}"#,
    ] {
        let wanted = error("Invalid parameter type for 'm', expected: integer");
        assert_eq!(read!(text, Reader::signed), wanted, "{text}");
        let wanted = error("Parameter 'm' expects uint64");
        assert_eq!(read!(text, Reader::unsigned), wanted, "{text}");
        assert_eq!(read!(text, Reader::size), wanted, "{text}");
    }
    for text in ["m=4294967296", "m=-1", r#"{"m":-1}"#] {
        let wanted = error("Parameter 'm' expects uint32_t");
        assert_eq!(read!(text, Reader::unsigned_32), wanted, "{text}");
    }
    let wanted = error("Value '-5' is out of range for parameter 'm'");
    assert_eq!(read!("m=-5", Reader::not_negative), wanted);
}

#[test]
fn sizes_have_suffixes_in_text_only() {
    assert_eq!(read!("m=1.5k", Reader::size), Ok(1536));
    assert_eq!(read!(r#"{"m":1536}"#, Reader::size), Ok(1536));
    for text in ["m=", "m=-1", "m=1x", "m=16e"] {
        assert_eq!(
            read!(text, Reader::size),
            error("Parameter 'm' expects size"),
            "{text}"
        );
    }
}

#[test]
fn inner_members_have_dotted_names() {
    let tree = json!({"a": {"b": {"c": 1}}});
    let mut outer = Reader::new(tree.as_object().unwrap(), Leaves::Typed);
    let mut a = outer.object("a").unwrap().unwrap();
    let mut b = a.object("b").unwrap().unwrap();
    let found = b.text("c").unwrap_err().to_string();
    assert_eq!(
        found,
        "Invalid parameter type for 'a.b.c', expected: string"
    );
    let found = a.required("x", Reader::text).unwrap_err().to_string();
    assert_eq!(found, "Parameter 'a.x' is missing");
    let wanted = error("Invalid parameter type for 'm', expected: object");
    assert_eq!(read!("m=1", object), wanted);
    assert_eq!(read!("m.0=1", object), wanted);
}

#[test]
fn alternates_and_lists_of_them() {
    assert_eq!(read!("m=x", one), Ok(()));
    assert_eq!(read!("m.a=x", one), Ok(()));
    let wanted = error("Invalid parameter type for 'm', expected: Ref");
    assert_eq!(read!("m.0=x", one), wanted);
    assert_eq!(read!(r#"{"m":null}"#, one), wanted);
    for (text, wanted) in [
        ("m=x", "Invalid parameter type for 'm', expected: array"),
        (
            "m.0=x,m.1.0=y",
            "Invalid parameter type for 'null', expected: Ref",
        ),
        ("m.0=x,m.1.z=y", "Parameter 'm.1.z' is unexpected"),
        (r#"{"m":["x",{"z":1}]}"#, "Parameter 'm[1].z' is unexpected"),
        // The first mistake, though a later one is of the more obvious kind.
        (r#"{"m":[{"z":1},7]}"#, "Parameter 'm[0].z' is unexpected"),
    ] {
        assert_eq!(read!(text, many), error(wanted), "{text}");
    }
}

#[test]
fn what_nobody_asked_for_is_refused() {
    let options = keyval::parse("a=1,b=2,c=3", None).unwrap();
    let mut reader = Reader::of(&options);
    reader.text("a").unwrap();
    reader.unsupported("z").unwrap();
    let found = reader.unsupported("c").unwrap_err().to_string();
    assert_eq!(
        found,
        "Parameter 'c' is not supported by ringback; leave it out"
    );
    let found = reader.finish().unwrap_err().to_string();
    assert_eq!(found, "Parameter 'b' is unexpected");
}
