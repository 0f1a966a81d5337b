//! The name of a backing file, as seen from its overlay.

use super::file_name::has_protocol;
use crate::error::{OptionError, Result};

/// The full name of the backing file `backing` of an image: itself if it is absolute or has a
/// prefix (`json:` is one), else a path from the overlay's directory. An empty one is none.
///
/// `overlay` is the image's file name, if it has one; `driver` its driver, for the error.
///
/// # Errors
///
/// [`OptionError::NoBaseDirectory`] for a relative name in an image without a file name.
pub fn full_backing_name(
    overlay: Option<&str>,
    backing: &str,
    driver: &str,
) -> Result<Option<String>> {
    if backing.is_empty() {
        return Ok(None);
    }
    if is_full(backing) {
        return Ok(Some(backing.to_owned()));
    }
    let overlay = overlay.ok_or_else(|| OptionError::NoBaseDirectory {
        driver: driver.to_owned(),
    })?;
    Ok(Some(combine(overlay, backing)))
}

/// The same for an image that is being made, by the name it will have.
///
/// # Errors
///
/// [`OptionError::RelativeBackingName`] for a relative name if the image's name is no path.
pub fn backing_name_at_creation(overlay: &str, backing: &str) -> Result<Option<String>> {
    if backing.is_empty() {
        return Ok(None);
    }
    if is_full(backing) {
        return Ok(Some(backing.to_owned()));
    }
    if overlay.is_empty() || overlay.starts_with("json:") {
        return Err(OptionError::RelativeBackingName {
            overlay: overlay.to_owned(),
        });
    }
    Ok(Some(combine(overlay, backing)))
}

fn is_full(name: &str) -> bool {
    name.starts_with('/') || has_protocol(name)
}

/// `name` in the directory of `base`, whose prefix stays.
fn combine(base: &str, name: &str) -> String {
    let prefix = match base.find(':') {
        Some(colon) if has_protocol(base) => colon + 1,
        _ => 0,
    };
    let directory = base.rfind('/').map_or(0, |slash| slash + 1);
    format!("{}{name}", &base[..prefix.max(directory)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_overlay() {
        for (overlay, backing, wanted) in [
            ("o.qcow2", "b.img", "b.img"),
            ("sub/o.qcow2", "../b.img", "sub/../b.img"),
            ("./sub/o.qcow2", "b.img", "./sub/b.img"),
            ("/abs/o.qcow2", "b.img", "/abs/b.img"),
            ("sub/o.qcow2", "/b.img", "/b.img"),
            ("sub/o.qcow2", "foo:b.img", "foo:b.img"),
            ("sub/o.qcow2", "json:{}", "json:{}"),
            ("sub/o.qcow2", "./a:b", "sub/./a:b"),
            ("foo:o.qcow2", "b.img", "foo:b.img"),
            ("foo:sub/o.qcow2", "b.img", "foo:sub/b.img"),
            ("sub/a:b", "b.img", "sub/b.img"),
        ] {
            let found = full_backing_name(Some(overlay), backing, "file");
            assert_eq!(found, Ok(Some(wanted.to_owned())), "{overlay} {backing}");
            let found = backing_name_at_creation(overlay, backing);
            assert_eq!(found, Ok(Some(wanted.to_owned())), "{overlay} {backing}");
        }
        assert_eq!(full_backing_name(None, "", "file"), Ok(None));
        assert_eq!(
            full_backing_name(None, "/b", "file"),
            Ok(Some("/b".to_owned()))
        );
    }

    #[test]
    fn a_relative_name_needs_a_directory() {
        let found = full_backing_name(None, "b.img", "null-co").unwrap_err();
        assert_eq!(
            found.to_string(),
            "Cannot generate a base directory for null-co nodes"
        );
        for overlay in ["", "json:{}"] {
            let found = backing_name_at_creation(overlay, "b.img").unwrap_err();
            let wanted = format!("Cannot use relative backing file names for '{overlay}'");
            assert_eq!(found.to_string(), wanted);
        }
    }
}
