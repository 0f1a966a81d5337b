//! `info block`: disks and nodes for people, in QEMU's form. The text is made of
//! what the queries for programs answer.

use std::fmt::Write;

use serde_json::Value;

use crate::daemon::control::Control;

/// Ends a line in what the monitor replies.
const END: &str = "\r\n";

impl Control {
    /// Disks, or with `nodes` named nodes; all, or the one of a name, which may
    /// be a node's in any case.
    pub(in crate::daemon) async fn info_block(
        &self,
        nodes: bool,
        verbose: bool,
        name: Option<&str>,
    ) -> String {
        if !nodes {
            let entries = self.query_block().await;
            let shown = list(&entries, "device", name, |entry| {
                disk(Some(entry), entry.get("inserted"), verbose)
            });
            if !shown.is_empty() || name.is_none() {
                return shown;
            }
        }
        let entries = self.named_block_nodes(false).await.unwrap_or_default();
        list(&entries, "node-name", name, |entry| {
            disk(None, Some(entry), verbose)
        })
    }
}

/// An empty line stands before each entry but the first, shown or not.
fn list(entries: &Value, key: &str, name: Option<&str>, show: impl Fn(&Value) -> String) -> String {
    let mut text = String::new();
    for (index, entry) in entries.as_array().into_iter().flatten().enumerate() {
        if name.is_some_and(|name| entry[key] != name) {
            continue;
        }
        if index > 0 {
            text.push_str(END);
        }
        text.push_str(&show(entry));
    }
    text
}

fn word<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_default()
}

fn is_set(entry: &Value, key: &str) -> bool {
    entry[key].as_bool().unwrap_or(false)
}

fn line(text: &mut String, label: &str, value: &str) {
    let label = format!("{label}:");
    let _ = write!(text, "    {label:<18}{value}{END}");
}

fn disk(entry: Option<&Value>, inserted: Option<&Value>, verbose: bool) -> String {
    let nothing = Value::Null;
    let (about, inside) = (entry.unwrap_or(&nothing), inserted.unwrap_or(&nothing));
    let (device, node) = (word(about, "device"), word(inside, "node-name"));
    let mut text = match (device, node) {
        ("", "") => word(about, "qdev").to_owned(),
        ("", node) => node.to_owned(),
        (device, "") => device.to_owned(),
        (device, node) => format!("{device} ({node})"),
    };
    if inserted.is_some() {
        let (file, driver) = (word(inside, "file"), word(inside, "drv"));
        let read_only = if is_set(inside, "ro") {
            ", read-only"
        } else {
            ""
        };
        let _ = write!(text, ": {file} ({driver}{read_only}){END}");
    } else {
        let _ = write!(text, ": [not inserted]{END}");
    }
    if entry.is_some() {
        about_device(about, &mut text);
    }
    if inserted.is_some() {
        about_node(inside, &mut text);
        if verbose {
            let _ = write!(text, "{END}Images:{END}");
            let mut image = Some(&inside["image"]);
            while let Some(shown) = image {
                about_image(shown, &mut text);
                image = shown.get("backing-image");
            }
        }
    }
    text
}

fn about_device(entry: &Value, text: &mut String) {
    if !word(entry, "qdev").is_empty() {
        line(text, "Attached to", word(entry, "qdev"));
    }
    let status = word(entry, "io-status");
    if !matches!(status, "" | "ok") {
        line(text, "I/O status", status);
    }
    if is_set(entry, "removable") {
        let lock = if is_set(entry, "locked") { "" } else { "not " };
        let tray = if is_set(entry, "tray_open") {
            "open"
        } else {
            "closed"
        };
        line(
            text,
            "Removable device",
            &format!("{lock}locked, tray {tray}"),
        );
    }
}

fn about_node(inserted: &Value, text: &mut String) {
    let cache = &inserted["cache"];
    let mode = if is_set(cache, "writeback") {
        "writeback"
    } else {
        "writethrough"
    };
    let direct = if is_set(cache, "direct") {
        ", direct"
    } else {
        ""
    };
    let no_flush = if is_set(cache, "no-flush") {
        ", ignore flushes"
    } else {
        ""
    };
    line(text, "Cache mode", &format!("{mode}{direct}{no_flush}"));
    if let Some(backing) = inserted["backing_file"].as_str() {
        let depth = &inserted["backing_file_depth"];
        let value = format!("{backing} (chain depth: {depth})");
        line(text, "Backing file", &value);
    }
    let zeroes = word(inserted, "detect_zeroes");
    if zeroes != "off" {
        line(text, "Detect zeroes", zeroes);
    }
}

fn about_image(image: &Value, text: &mut String) {
    let mut say = |line: String| {
        let _ = write!(text, "{line}{END}");
    };
    say(format!("image: {}", word(image, "filename")));
    say(format!("file format: {}", word(image, "format")));
    let bytes = image["virtual-size"].as_u64().unwrap_or(0);
    say(format!("virtual size: {} ({bytes} bytes)", size(bytes)));
    let allocated = image["actual-size"].as_u64();
    let allocated = allocated.map_or_else(|| "unavailable".to_owned(), size);
    say(format!("disk size: {allocated}"));
    if let Some(bytes) = image["cluster-size"].as_u64() {
        say(format!("cluster_size: {bytes}"));
    }
    if is_set(image, "dirty-flag") {
        say("cleanly shut down: no".to_owned());
    }
    if let Some(backing) = image["backing-filename"].as_str() {
        let full = image["full-backing-filename"].as_str();
        let actual = match full {
            None => " (cannot determine actual path)".to_owned(),
            Some(full) if full == backing => String::new(),
            Some(full) => format!(" (actual path: {full})"),
        };
        say(format!("backing file: {backing}{actual}"));
        if let Some(format) = image["backing-filename-format"].as_str() {
            say(format!("backing file format: {format}"));
        }
    }
    let specific = image["format-specific"]["data"].as_object();
    if let Some(specific) = specific.filter(|specific| !specific.is_empty()) {
        say("Format specific information:".to_owned());
        for key in SPECIFIC {
            if let Some(value) = specific.get(key) {
                about_format(&mut say, key, value);
            }
        }
    }
}

/// What a qcow2 image tells of its format, in the order of the telling.
const SPECIFIC: [&str; 9] = [
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "data-file",
    "data-file-raw",
    "corrupt",
    "extended-l2",
];

fn about_format(say: &mut impl FnMut(String), key: &str, value: &Value) {
    let label = key.replace('-', " ");
    let Some(list) = value.as_array() else {
        let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
        say(format!("    {label}: {value}"));
        return;
    };
    say(format!("    {label}:"));
    for (index, entry) in list.iter().enumerate() {
        say(format!("        [{index}]:"));
        say("            flags:".to_owned());
        let flags = entry["flags"].as_array().into_iter().flatten();
        for (index, flag) in flags.enumerate() {
            let flag = flag.as_str().unwrap_or_default();
            say(format!("                [{index}]: {flag}"));
        }
        say(format!("            name: {}", word(entry, "name")));
        say(format!("            granularity: {}", entry["granularity"]));
    }
}

/// Three digits and a unit: `4 MiB`, `0 B`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // From 1000 of a unit on it is the next one's turn.
    let (mut unit, mut scale) = (0, 1u64);
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000 * u128::from(scale) {
        scale *= 1024;
        unit += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64 / scale as f64;
    let decimals = match value {
        value if value < 1.0 => 3,
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = if decimals > 0 {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        &digits
    };
    format!("{digits} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, wanted) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (4096, "4 KiB"),
            (12288, "12 KiB"),
            (197_120, "192 KiB"),
            (1536, "1.5 KiB"),
            (4_194_304, "4 MiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), wanted, "{bytes}");
        }
    }

    #[test]
    fn a_disk_has_its_names_first() {
        let inserted = json!({
            "node-name": "r", "file": "r.raw", "drv": "raw", "ro": true, "detect_zeroes": "on",
            "cache": { "writeback": true, "direct": true, "no-flush": true },
        });
        let entry = json!({ "device": "d0", "qdev": "vd0", "removable": false });
        let shown = disk(Some(&entry), Some(&inserted), false);
        let wanted = "d0 (r): r.raw (raw, read-only)\r\n    Attached to:      vd0\r\n    \
                      Cache mode:       writeback, direct, ignore flushes\r\n    \
                      Detect zeroes:    on\r\n";
        assert_eq!(shown, wanted);
    }

    #[test]
    fn an_empty_drive_tells_of_its_tray() {
        let entry = json!({
            "device": "", "qdev": "cd1", "removable": true, "tray_open": true, "locked": false,
        });
        let wanted = "cd1: [not inserted]\r\n    Attached to:      cd1\r\n    \
                      Removable device: not locked, tray open\r\n";
        assert_eq!(disk(Some(&entry), None, false), wanted);
    }

    #[test]
    fn entries_before_the_one_shown_leave_an_empty_line() {
        let entries = json!([{ "device": "a" }, { "device": "b" }]);
        let show = |entry: &Value| format!("{}\r\n", word(entry, "device"));
        assert_eq!(list(&entries, "device", None, show), "a\r\n\r\nb\r\n");
        assert_eq!(list(&entries, "device", Some("a"), show), "a\r\n");
        assert_eq!(list(&entries, "device", Some("b"), show), "\r\nb\r\n");
        assert_eq!(list(&entries, "device", Some("c"), show), "");
    }
}
