//! An image's name as QEMU shows it: a path where that says enough, else `json:{...}`.
//!
//! Options that change what a guest sees belong to the name: a raw image's `offset`, the rules
//! of blkdebug. Caches, locks and the like do not. The keys of `json:` are sorted here; QEMU's
//! are in the order of a hash table.

use std::fmt;

use serde_json::{Map, Value};

use crate::blockdev::nbd::NBD_PORT;
use crate::json;

/// Name of an open node.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageName {
    exact: Option<String>,
    base: Option<String>,
    options: Map<String, Value>,
    is_protocol: bool,
}

/// The options of a driver that belong to the name. One that ends in a dot is all below it.
fn naming_options(driver: &str) -> &'static [&'static str] {
    match driver {
        "file" | "host_device" => &["filename"],
        "raw" => &["offset", "size"],
        "null-co" => &["size", "read-zeroes"],
        "nbd" => &[
            "path",
            "host",
            "port",
            "export",
            "tls-creds",
            "tls-hostname",
            "server.",
        ],
        "throttle" => &["throttle-group"],
        "blkdebug" => &[
            "config",
            "align",
            "max-transfer",
            "opt-write-zero",
            "max-write-zero",
            "opt-discard",
            "max-discard",
            "inject-error.",
            "set-state.",
        ],
        _ => &[],
    }
}

fn belongs(name: &str, patterns: &[&str]) -> bool {
    patterns
        .iter()
        .any(|pattern| name == *pattern || (pattern.ends_with('.') && name.starts_with(pattern)))
}

impl ImageName {
    /// The name of a node with this driver.
    ///
    /// `given` are its options as they were given, flat ([`super::flatten`],
    /// [`super::DriverNode::given`]). `children` are the names below it, the main one first; a
    /// backing file is among them only if options and not the image chose it, and is `None`
    /// if they chose none.
    #[must_use]
    pub fn new(
        driver: &str,
        given: &Map<String, Value>,
        children: &[(&str, Option<&Self>)],
    ) -> Self {
        let patterns = naming_options(driver);
        let own: Map<String, Value> = given
            .iter()
            .filter(|(name, _)| belongs(name, patterns))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let exact = exact_name(driver, &own, children);
        let base = match children.first() {
            Some((_, main)) => main.and_then(|main| main.base.clone()),
            None => exact.clone(),
        };
        let mut options = own;
        options.insert("driver".to_owned(), Value::from(driver));
        for (child, name) in children {
            let value = name.map_or(Value::Null, |name| Value::Object(name.options.clone()));
            options.insert((*child).to_owned(), value);
        }
        Self {
            exact,
            base,
            options,
            is_protocol: matches!(
                driver,
                "file" | "host_device" | "null-co" | "nbd" | "blkdebug"
            ),
        }
    }

    /// The plain name, if that says enough.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        self.exact.as_deref()
    }

    /// The plain name of what lies at the bottom, whatever stands between: names that an image
    /// has for other files start in its directory.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// All options, a tree: what stands behind `json:`.
    #[must_use]
    pub fn options(&self) -> &Map<String, Value> {
        &self.options
    }
}

fn exact_name(
    driver: &str,
    own: &Map<String, Value>,
    children: &[(&str, Option<&ImageName>)],
) -> Option<String> {
    let main = children.first().and_then(|(_, name)| *name);
    match driver {
        "file" | "host_device" => own.get("filename")?.as_str().map(str::to_owned),
        "null-co" => own.is_empty().then(|| "null-co://".to_owned()),
        "nbd" => nbd_name(own),
        "blkdebug" => {
            if own.keys().any(|name| name != "config") {
                return None;
            }
            let config = own.get("config").and_then(Value::as_str).unwrap_or("");
            Some(format!("blkdebug:{config}:{}", main?.exact()?))
        }
        // These show what they stand on, also if that is no plain name.
        "copy-before-write" | "snapshot-access" => main.map(ToString::to_string),
        "throttle" | "copy-on-read" => None,
        _ => {
            let says_enough = own.is_empty() && children.len() == 1;
            let main = main.filter(|main| says_enough && main.is_protocol)?;
            main.exact.clone()
        }
    }
}

/// As QEMU writes it: nothing is encoded.
fn nbd_name(own: &Map<String, Value>) -> Option<String> {
    let text = |keys: &[&str]| {
        let mut values = keys.iter().filter_map(|key| own.get(*key));
        values.find_map(Value::as_str)
    };
    let export = text(&["export"]);
    if let Some(path) = text(&["server.path", "path"]) {
        return Some(match export {
            Some(export) => format!("nbd+unix:///{export}?socket={path}"),
            None => format!("nbd+unix://?socket={path}"),
        });
    }
    // What else the address says has no place in a name.
    let says_more = ["server.ipv4", "server.ipv6", "server.to"];
    if says_more.iter().any(|key| own.contains_key(*key)) {
        return None;
    }
    let host = text(&["server.host", "host"])?;
    let port = text(&["server.port", "port"]).unwrap_or(NBD_PORT);
    Some(match export {
        Some(export) => format!("nbd://{host}:{port}/{export}"),
        None => format!("nbd://{host}:{port}"),
    })
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exact {
            Some(exact) => f.write_str(exact),
            None => {
                let mut options = Value::Object(self.options.clone());
                options.sort_all_objects();
                write!(f, "json:{}", json::write_value(&options, false))
            }
        }
    }
}
