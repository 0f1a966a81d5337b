//! The shape of what is opened. The error texts are compared with the real qemu-io in
//! `tests/open_against_qemu_io.rs`.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::blockdev::{Discard, FileOptions, NullOptions};
use crate::opts;

fn by_options(text: &str) -> std::result::Result<OpenNode, String> {
    let opts = opts::parse(text).map_err(|error| error.to_string())?;
    open(None, &opts.options, &Settings::default()).map_err(|error| error.to_string())
}

fn by_name(name: &str) -> std::result::Result<OpenNode, String> {
    open(Some(name), &Map::new(), &Settings::default()).map_err(|error| error.to_string())
}

fn driver(node: OpenNode) -> DriverNode {
    match node {
        OpenNode::Driver(node) => node,
        OpenNode::Probe(probe) => panic!("no driver: {probe:?}"),
    }
}

fn inside(child: &Child<OpenNode>) -> DriverNode {
    match child {
        Child::Options(node) => driver((**node).clone()),
        Child::Node(name) => panic!("a reference to {name}"),
    }
}

fn main_child(node: &DriverNode) -> DriverNode {
    inside(node.driver.main_child().unwrap())
}

fn path(node: &DriverNode) -> &str {
    match &node.driver {
        DriverOptions::File(file) => &file.filename,
        other => panic!("no file: {other:?}"),
    }
}

fn probe(node: OpenNode) -> Probe {
    match node {
        OpenNode::Probe(probe) => probe,
        OpenNode::Driver(node) => panic!("the driver is known: {node:?}"),
    }
}

#[test]
fn a_plain_name_is_a_format_to_be_found_over_a_file() {
    let found = probe(by_name("disk.qcow2").unwrap());
    let file = inside(&found.file);
    assert_eq!(path(&file), "disk.qcow2");
    assert!(file.by_file_name);
    let storage = found.file.clone();
    let image = found.resolve("qcow2", storage).unwrap();
    assert_eq!(image.driver.name(), "qcow2");
    assert_eq!(path(&main_child(&image)), "disk.qcow2");
    // The engine may have made a node of the storage.
    let found = probe(by_name("file:disk").unwrap());
    assert!(!inside(&found.file).by_file_name);
    let raw = found.resolve("raw", Child::Node("n1".to_owned())).unwrap();
    assert_eq!(raw.driver.main_child(), Some(&Child::Node("n1".to_owned())));
}

#[test]
fn options_of_a_format_wait_until_it_is_known() {
    let found = || probe(by_options("file.filename=a,offset=1k,lazy-refcounts=on").unwrap());
    let file = found().file;
    let error = found()
        .resolve("raw", file.clone())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "Block format 'raw' does not support the option 'lazy-refcounts'"
    );
    let error = found()
        .resolve("qcow2", file.clone())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "Block format 'qcow2' does not support the option 'offset'"
    );
    for format in ["file", "bogus"] {
        let error = found()
            .resolve(format, file.clone())
            .unwrap_err()
            .to_string();
        assert_eq!(error, format!("Unknown driver '{format}'"));
    }
}

#[test]
fn texts_become_values_with_suffixes() {
    let node = driver(by_options("driver=raw,offset=1.5k,size=1M,file.driver=null-co").unwrap());
    let DriverOptions::Raw(raw) = &node.driver else {
        panic!("{node:?}");
    };
    assert_eq!((raw.offset, raw.size), (Some(1536), Some(1 << 20)));
    let null = driver(
        by_name(r#"json:{"driver":"null-co","size":4096,"latency-ns":"0x10","read-zeroes":true}"#)
            .unwrap(),
    );
    let wanted = NullOptions {
        size: Some(4096),
        latency_ns: Some(16),
        read_zeroes: Some(true),
    };
    assert_eq!(null.driver, DriverOptions::NullCo(wanted));
}

#[test]
fn blkdebug_names_are_nested() {
    let found = probe(by_name("blkdebug:rules:blkdebug::a:b").map_or_else(
        |error| {
            assert_eq!(error, "Unknown protocol 'a'");
            by_name("blkdebug:rules:blkdebug::./a:b").unwrap()
        },
        |node| panic!("{node:?}"),
    ));
    let outer = inside(&found.file);
    let DriverOptions::Blkdebug(options) = &outer.driver else {
        panic!("{outer:?}");
    };
    assert_eq!(options.config.as_deref(), Some("rules"));
    let inner = inside(&options.image);
    let DriverOptions::Blkdebug(options) = &inner.driver else {
        panic!("{inner:?}");
    };
    assert_eq!(options.config, None);
    assert_eq!(path(&inside(&options.image)), "./a:b");
}

#[test]
fn options_beside_a_json_name_win() {
    let mut options = Map::new();
    options.insert("offset".to_owned(), Value::from("512"));
    let name = r#"json:{"driver":"raw","offset":1024,"size":512,"file.filename":"a"}"#;
    let node = driver(open(Some(name), &options, &Settings::default()).unwrap());
    let DriverOptions::Raw(raw) = &node.driver else {
        panic!("{node:?}");
    };
    assert_eq!((raw.offset, raw.size), (Some(512), Some(512)));
}

#[test]
fn rules_of_blkdebug_stand_with_and_without_an_index() {
    let rules = |text: &str| {
        let text = format!("driver=blkdebug,x-image=a,{text}");
        match driver(by_options(&text).unwrap()).driver {
            DriverOptions::Blkdebug(blkdebug) => (blkdebug.inject_error, blkdebug.set_state),
            other => panic!("{other:?}"),
        }
    };
    let (one, _) = rules("inject-error.event=read_aio,inject-error.sector=-1");
    let (same, _) = rules("inject-error.0.event=read_aio,inject-error.0.sector=-1");
    assert_eq!(one, same);
    assert_eq!(one[0].sector, Some(-1));
    let (many, states) =
        rules("inject-error.1.event=none,inject-error.0.event=l2_load,set-state.event=l2_load");
    assert_eq!(many.len(), 2);
    assert_eq!(many[1].event, crate::blockdev::blkdebug::Event::None);
    assert_eq!(states[0].new_state, 0);
}

#[test]
fn children_take_settings_from_their_parents() {
    let defaults = Settings {
        read_only: true,
        discard: Discard::Ignore,
        ..Settings::default()
    };
    let text = "driver=raw,cache.direct=on,force-share=on,file.driver=raw,\
                file.cache.no-flush=on,file.file.filename=a";
    let options = opts::parse(text).unwrap().options;
    let top = driver(open(None, &options, &defaults).unwrap());
    assert!(top.settings.direct && top.settings.read_only && !top.settings.no_flush);
    assert_eq!(top.settings.discard, Discard::Ignore);
    let file = main_child(&main_child(&top));
    let wanted = Settings {
        direct_given: true,
        direct: true,
        no_flush: true,
        force_share: true,
        discard: Discard::Unmap,
        ..defaults
    };
    assert_eq!(file.settings, wanted);
    assert_eq!(main_child(&top).settings, wanted);
}

fn backing(text: &str, header: BackingHeader<'_>) -> std::result::Result<OpenNode, String> {
    let node = driver(by_options(&format!("driver=qcow2,file.filename=sub/o,{text}")).unwrap());
    match node.backing(header, Some("sub/o")) {
        Ok(Some(Child::Options(node))) => Ok(*node),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

const HEADER: BackingHeader<'_> = BackingHeader {
    file: "b",
    format: Some("raw"),
};
const NO_BACKING: BackingHeader<'_> = BackingHeader {
    file: "",
    format: None,
};

#[test]
fn the_image_says_what_is_below() {
    let below = driver(backing("cache.direct=on", HEADER).unwrap());
    assert_eq!(path(&main_child(&below)), "sub/b");
    assert_eq!(below.driver.name(), "raw");
    assert!(below.settings.read_only && below.settings.direct);
    let unknown = BackingHeader {
        format: None,
        ..HEADER
    };
    assert_eq!(
        path(&inside(&probe(backing("", unknown).unwrap()).file)),
        "sub/b"
    );
    assert_eq!(backing("", NO_BACKING), Err("None".to_owned()));
}

#[test]
fn options_override_what_the_image_says() {
    let below = driver(backing("backing.driver=qcow2,backing.read-only=off", HEADER).unwrap());
    assert_eq!(below.driver.name(), "qcow2");
    assert!(!below.settings.read_only);
    // The header's format goes with any file.
    let below = driver(backing("backing.file.filename=c", HEADER).unwrap());
    assert_eq!(
        (below.driver.name(), path(&main_child(&below))),
        ("raw", "c")
    );
    let below = backing("backing.file.filename=c", NO_BACKING).unwrap();
    assert_eq!(path(&inside(&probe(below).file)), "c");
    let none = Err("None".to_owned());
    assert_eq!(backing("backing=", HEADER), none);
    let node = Err(format!(
        "{:?}",
        Some(Child::<OpenNode>::Node("n".to_owned()))
    ));
    assert_eq!(backing("backing=n", HEADER), node);
    let error = backing("backing.foo=1", HEADER).unwrap_err();
    assert_eq!(
        error,
        "Could not open backing file: Block format 'raw' does not support the option 'foo'"
    );
}

#[test]
fn an_empty_backing_warns() {
    let node = driver(by_options("driver=qcow2,file.filename=a,backing=").unwrap());
    let wanted = r#"Use of "backing": "" is deprecated; use "backing": null instead"#;
    assert_eq!(node.warnings, [wanted]);
    assert!(node.overrides_backing());
    let node = driver(by_name(r#"json:{"driver":"qcow2","backing":null,"file":"a"}"#).unwrap());
    assert_eq!(node.warnings, [""; 0]);
    assert_eq!(node.backing(HEADER, None), Ok(None));
}

#[test]
fn lists_may_stand_below_a_strict_child() {
    let text = "driver=copy-before-write,file.driver=null-co,target.driver=blkdebug,\
                target.image.driver=null-co,target.inject-error.0.event=none";
    let node = driver(by_options(text).unwrap());
    let DriverOptions::CopyBeforeWrite(cbw) = &node.driver else {
        panic!("{node:?}");
    };
    let DriverOptions::Blkdebug(target) = inside(&cbw.target).driver else {
        panic!("{node:?}");
    };
    assert_eq!(target.inject_error.len(), 1);
    for wrong in ["target.=1", "target..a=1", "target.a.=1"] {
        assert!(by_options(&format!("{text},{wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn hostile_options_are_refused_cheaply() {
    let deep = format!("json:{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
    assert!(
        by_name(&deep)
            .unwrap_err()
            .contains("a name of more than 1024 bytes")
    );
    let many: Vec<_> = (0..5000).map(|key| format!("\"{key}\":1")).collect();
    let wide = format!("json:{{{}}}", many.join(","));
    assert!(
        by_name(&wide)
            .unwrap_err()
            .contains("more than 4096 options")
    );
    let wide: String = (0..5000).map(|key| format!("{key}=1,")).collect();
    assert!(
        by_options(&wide)
            .unwrap_err()
            .contains("more than 4096 options")
    );
    let nested = "blkdebug::".repeat(1000) + "a";
    assert!(
        by_name(&nested)
            .unwrap_err()
            .starts_with("Nodes are nested more than 64 deep")
    );
    let long = format!("driver=null-co,{}a=1", "a.".repeat(100_000));
    assert!(
        by_options(&long)
            .unwrap_err()
            .contains("a name of more than 1024 bytes")
    );
    let rules: String = (0..4000)
        .map(|rule| format!(",inject-error.{rule}.event=none"))
        .collect();
    assert!(by_options(&format!("driver=blkdebug,x-image=a{rules}")).is_ok());
}

/// The name of a node and all below it.
fn name(node: &DriverNode) -> ImageName {
    let main = node.driver.main_child().map(inside);
    let main = main.as_ref().map(name);
    let child = match node.driver {
        DriverOptions::Blkdebug(_) => "image",
        _ => "file",
    };
    let children: Vec<_> = main.iter().map(|main| (child, Some(main))).collect();
    ImageName::new(node.driver.name(), node.given(), &children)
}

/// Each of these was shown by qemu-img info, but for the order of keys.
#[test]
fn names_say_what_matters() {
    let file = r#""file": {"driver": "file", "filename": "a.img"}"#;
    for (text, wanted) in [
        ("driver=raw,file.filename=a.img", "a.img".to_owned()),
        (
            "driver=file,filename=a.img,aio=native,cache.direct=on",
            "a.img".to_owned(),
        ),
        (
            "driver=raw,file.driver=null-co,file.latency-ns=0",
            "null-co://".to_owned(),
        ),
        (
            "driver=null-co,size=1M",
            r#"json:{"driver": "null-co", "size": "1M"}"#.to_owned(),
        ),
        (
            "driver=raw,offset=512,file.filename=a.img,file.locking=off",
            format!(r#"json:{{"driver": "raw", {file}, "offset": "512"}}"#),
        ),
        (
            "driver=raw,file.driver=raw,file.file.filename=a.img",
            format!(r#"json:{{"driver": "raw", "file": {{"driver": "raw", {file}}}}}"#),
        ),
        (
            "driver=throttle,throttle-group=g,file.filename=a.img",
            format!(r#"json:{{"driver": "throttle", {file}, "throttle-group": "g"}}"#),
        ),
        (
            "driver=qcow2,file.filename=q,overlap-check=all,cache-size=1M",
            "q".to_owned(),
        ),
        (
            "driver=nbd,server.type=inet,server.host=h,server.port=1,export=e",
            "nbd://h:1/e".to_owned(),
        ),
        (
            "driver=nbd,server.type=inet,server.host=h,server.port=1,server.ipv6=on",
            r#"json:{"driver": "nbd", "server.host": "h", "server.ipv6": "on", "#.to_owned()
                + r#""server.port": "1", "server.type": "inet"}"#,
        ),
        (
            "driver=blkdebug,image.driver=null-co",
            "blkdebug::null-co://".to_owned(),
        ),
        (
            "driver=raw,file.driver=blkdebug,file.config=c,file.x-image=a.img",
            "blkdebug:c:a.img".to_owned(),
        ),
        (
            "driver=blkdebug,image.driver=raw,image.file.filename=a.img,\
             take-child-perms.0=resize",
            "blkdebug::a.img".to_owned(),
        ),
        (
            "driver=blkdebug,x-image=a.img,inject-error.0.event=none,align=512",
            r#"json:{"align": "512", "driver": "blkdebug", "image": {"driver": "file", "#
                .to_owned()
                + r#""filename": "a.img"}, "inject-error.0.event": "none"}"#,
        ),
    ] {
        let node = driver(by_options(text).unwrap());
        assert_eq!(name(&node).to_string(), wanted, "{text}");
    }
    let numbers =
        driver(by_name(r#"json:{"driver":"null-co","size":512,"read-zeroes":true}"#).unwrap());
    assert_eq!(
        name(&numbers).to_string(),
        r#"json:{"driver": "null-co", "read-zeroes": true, "size": 512}"#
    );
    let below = r#"json:{"driver":"raw","file":{"driver":"null-co","size":512}}"#;
    assert_eq!(
        name(&driver(by_name(below).unwrap())).to_string(),
        r#"json:{"driver": "raw", "file": {"driver": "null-co", "size": 512}}"#
    );
}

/// An image below which stood rules of blkdebug, a throttle or a window did not find a backing
/// file that its header gives relative to itself.
#[test]
fn relative_names_start_where_the_bottom_lies() {
    for (text, wanted) in [
        ("driver=file,filename=d/a.img", Some("d/a.img")),
        (
            "driver=raw,offset=512,file.filename=d/a.img",
            Some("d/a.img"),
        ),
        (
            "driver=throttle,throttle-group=g,file.driver=raw,file.file.filename=d/a.img",
            Some("d/a.img"),
        ),
        ("driver=blkdebug,config=c,x-image=d/a.img", Some("d/a.img")),
        (
            "driver=blkdebug,x-image=d/a.img,inject-error.0.event=none",
            Some("d/a.img"),
        ),
        ("driver=raw,file.driver=null-co,file.size=1M", None),
    ] {
        let node = driver(by_options(text).unwrap());
        assert_eq!(name(&node).base(), wanted, "{text}");
    }
}

#[test]
fn a_backing_file_that_options_chose_is_in_the_name() {
    let file = driver(by_options("driver=file,filename=o").unwrap());
    let file = name(&file);
    let given = Map::new();
    let of = |children: &[(&str, Option<&ImageName>)]| {
        ImageName::new("qcow2", &given, children).to_string()
    };
    assert_eq!(of(&[("file", Some(&file))]), "o");
    assert_eq!(
        of(&[("file", Some(&file)), ("backing", None)]),
        r#"json:{"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "o"}}"#
    );
}

#[test]
fn flat_options_come_from_trees() {
    let tree = json!({"a": {"b": 1, "c": [{"d": 2}, 3]}, "a.b": 4, "e": {}, "f": null});
    let flat = flatten(tree.as_object().unwrap()).unwrap();
    let wanted = json!({"a.b": 1, "a.c.0.d": 2, "a.c.1": 3, "e": {}, "f": null});
    assert_eq!(Value::Object(flat), wanted);
}

proptest! {
    #[test]
    fn a_json_name_is_read_back(filename in ".{1,9}", offset in 0..1_000_000_u64) {
        let file = FileOptions { filename: filename.clone(), ..FileOptions::default() };
        let mut options = Map::new();
        options.insert("driver".to_owned(), Value::from("raw"));
        options.insert("offset".to_owned(), Value::from(offset));
        options.insert("file.filename".to_owned(), Value::from(filename.clone()));
        prop_assume!(!filename.contains('\0'));
        let node = driver(open(None, &options, &Settings::default()).unwrap());
        prop_assert_eq!(&main_child(&node).driver, &DriverOptions::File(file));
        let shown = name(&node).to_string();
        let again = driver(by_name(&shown).unwrap());
        prop_assert_eq!(again.driver.name(), "raw");
        prop_assert_eq!(main_child(&again).driver, main_child(&node).driver);
        prop_assert_eq!(name(&again), name(&node));
    }

    #[test]
    fn any_text_is_a_node_or_an_error(
        text in "(driver=(raw|qcow2|blkdebug|file|throttle|copy-before-write)|file|backing|image|\
                 \\.|=|,|filename|x-image|inject-error|event|none|0|1|take-child-perms|cache|\
                 overlap-check|template|:|\\{|\"){0,14}",
    ) {
        let _ = by_options(&text);
        let _ = by_name(&text);
        let _ = by_name(&format!("json:{text}"));
    }
}
