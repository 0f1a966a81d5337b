//! What is read, what is refused, what is inherited. The error texts are compared with the
//! real qemu-storage-daemon in `tests/blockdev_against_qsd.rs`.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::keyval::write_keyval;

fn parse(text: &str) -> std::result::Result<BlockdevOptions, String> {
    BlockdevOptions::parse(text).map_err(|error| error.to_string())
}

fn error(text: &str) -> String {
    parse(text)
        .map(|options| panic!("{text} gave {options:?}"))
        .unwrap_err()
}

#[test]
fn every_option_is_read_into_its_place() {
    let text = "copy-before-write,node-name=cbw,discard=unmap,cache.direct=on,cache.no-flush=off,\
                read-only=off,auto-read-only=on,force-share=no,detect-zeroes=unmap,\
                file.driver=raw,file.offset=1,file.size=512,file.file=disk,\
                target.driver=file,target.filename=a,,b,target.locking=off,target.aio=io_uring,\
                bitmap.node=n,bitmap.name=b,on-cbw-error=break-snapshot,cbw-timeout=45,\
                min-cluster-size=64k";
    let raw = BlockdevOptions {
        common: CommonOptions::default(),
        driver: DriverOptions::Raw(RawOptions {
            file: Child::Node("disk".to_owned()),
            offset: Some(1),
            size: Some(512),
        }),
    };
    let file = BlockdevOptions {
        common: CommonOptions::default(),
        driver: DriverOptions::File(FileOptions {
            filename: "a,b".to_owned(),
            locking: Some(Locking::Off),
            aio: Some(Aio::IoUring),
        }),
    };
    let wanted = BlockdevOptions {
        common: CommonOptions {
            node_name: Some("cbw".to_owned()),
            discard: Some(Discard::Unmap),
            cache: CacheOptions {
                direct: Some(true),
                no_flush: Some(false),
            },
            read_only: Some(false),
            auto_read_only: Some(true),
            force_share: Some(false),
            detect_zeroes: Some(DetectZeroes::Unmap),
        },
        driver: DriverOptions::CopyBeforeWrite(CbwOptions {
            file: Child::Options(Box::new(raw)),
            target: Child::Options(Box::new(file)),
            bitmap: Some(BitmapRef {
                node: "n".to_owned(),
                name: "b".to_owned(),
            }),
            on_cbw_error: Some(OnCbwError::BreakSnapshot),
            cbw_timeout: Some(45),
            min_cluster_size: Some(65536),
        }),
    };
    assert_eq!(parse(text), Ok(wanted));
    let null = parse("null-co,node-name=n,size=4096,latency-ns=5,read-zeroes=on").unwrap();
    let wanted = NullOptions {
        size: Some(4096),
        latency_ns: Some(5),
        read_zeroes: Some(true),
    };
    assert_eq!(null.driver, DriverOptions::NullCo(wanted));
}

#[test]
fn both_forms_give_the_same() {
    let text = parse("snapshot-access,node-name=s,file.driver=host_device,file.filename=/dev/x");
    let json = parse(
        r#"{"driver":"snapshot-access","node-name":"s",
            "file":{"driver":"host_device","filename":"/dev/x"}}"#,
    );
    assert_eq!(text, json);
}

#[test]
fn what_is_not_given_is_not_written() {
    let options = parse("raw,node-name=a,file.driver=host_device,file.filename=x").unwrap();
    let wanted = json!({
        "node-name": "a",
        "driver": "raw",
        "file": {"driver": "host_device", "filename": "x"},
    });
    assert_eq!(Value::Object(options.to_json()), wanted);
}

#[test]
fn qemus_other_drivers_are_refused_by_name() {
    let wanted = "Driver 'qcow2' is not supported by ringback; use one of: file, host_device, \
                  raw, null-co, copy-before-write, snapshot-access";
    assert_eq!(error("qcow2,node-name=a,file=b"), wanted);
    assert_eq!(error("raw,node-name=a,file.driver=qcow2"), wanted);
    assert_eq!(
        error("qcow3,node-name=a"),
        "Parameter 'driver' does not accept value 'qcow3'"
    );
}

#[test]
fn qemus_other_options_are_refused_by_name() {
    for option in [
        "pr-manager",
        "aio-max-batch",
        "drop-cache",
        "x-check-cache-dropped",
    ] {
        let found = error(&format!(
            "raw,node-name=a,file.driver=file,file.filename=x,file.{option}=1"
        ));
        let wanted =
            format!("Parameter 'file.{option}' is not supported by ringback; leave it out");
        assert_eq!(found, wanted);
    }
}

#[test]
fn sizes_that_kill_qemu_are_refused() {
    let cbw = "copy-before-write,node-name=a,file=b,target=c,min-cluster-size";
    let wanted = "Cannot create block-copy-state: min-cluster-size too large: \
                  4294967296 > 2147483648";
    assert_eq!(error(&format!("{cbw}=4G")), wanted);
    assert!(parse(&format!("{cbw}=2G")).is_ok());
    let wanted = "Value '-1' is out of range for parameter 'size'";
    assert_eq!(error("null-co,node-name=a,size=-1"), wanted);
}

#[test]
fn a_file_name_has_no_nul() {
    let found = error(r#"{"driver":"file","node-name":"a","filename":"a\u0000b"}"#);
    assert_eq!(found, r"The file name 'a\0b' contains a NUL character");
}

#[test]
fn nodes_are_nested_only_so_deep() {
    let nested = |depth: usize| {
        let mut text = "raw,node-name=a".to_owned();
        for level in 1..depth {
            text += &format!(",{}driver=raw", "file.".repeat(level));
        }
        text + &format!(",{}driver=null-co", "file.".repeat(depth))
    };
    assert!(parse(&nested(MAX_NESTED)).is_ok());
    assert!(error(&nested(MAX_NESTED + 1)).starts_with("Nodes are nested more than 64 deep"));
    let json = "{\"driver\":\"raw\",\"file\":".repeat(1000) + "1" + &"}".repeat(1000);
    assert!(error(&json).starts_with("Nodes are nested more than 64 deep"));
}

#[test]
fn children_inherit() {
    let given = |text: &str| {
        parse(&format!("null-co,node-name=a,{text}"))
            .unwrap()
            .common
    };
    let parent = given(
        "read-only=on,auto-read-only=on,force-share=on,cache.direct=on,cache.no-flush=on,\
         discard=unmap,detect-zeroes=unmap",
    )
    .settle(None);
    let child = CommonOptions::default().settle(Some(&parent));
    assert_eq!(
        child,
        Settings {
            detect_zeroes: DetectZeroes::Off,
            ..parent
        }
    );
    let child = given("read-only=off,discard=ignore,cache.direct=off").settle(Some(&parent));
    assert!(!child.read_only && !child.direct && child.direct_given && child.no_flush);
    assert_eq!(child.discard, Discard::Ignore);
}

#[test]
fn an_outermost_node_ignores_discards_and_its_children_do_not() {
    let outer = CommonOptions::default().settle(None);
    assert_eq!(outer, Settings::default());
    assert_eq!(outer.discard, Discard::Ignore);
    let inner = CommonOptions::default().settle(Some(&outer));
    assert_eq!(
        inner,
        Settings {
            discard: Discard::Unmap,
            ..outer
        }
    );
}

/// Any of a word's values, or none.
fn any_word<W: Word + std::fmt::Debug>() -> impl Strategy<Value = Option<W>> {
    prop::option::of(prop::sample::select(W::WORDS).prop_map(|(_, value)| value))
}

fn any_common() -> impl Strategy<Value = CommonOptions> {
    let flag = any::<Option<bool>>;
    let name = prop::option::of("[a-z][a-z0-9._-]{0,9}");
    let cache = (flag(), flag()).prop_map(|(direct, no_flush)| CacheOptions { direct, no_flush });
    (name, any_word(), cache, flag(), flag(), flag(), any_word()).prop_map(
        |(node_name, discard, cache, read_only, auto_read_only, force_share, detect_zeroes)| {
            CommonOptions {
                node_name,
                discard,
                cache,
                read_only,
                auto_read_only,
                force_share,
                detect_zeroes,
            }
        },
    )
}

fn any_storage() -> impl Strategy<Value = DriverOptions> {
    let file = || {
        (".{0,9}", any_word(), any_word()).prop_map(|(filename, locking, aio)| FileOptions {
            filename,
            locking,
            aio,
        })
    };
    let size = prop::option::of(0..=i64::MAX.cast_unsigned());
    let null = (size, any::<Option<u64>>(), any::<Option<bool>>()).prop_map(
        |(size, latency_ns, read_zeroes)| {
            DriverOptions::NullCo(NullOptions {
                size,
                latency_ns,
                read_zeroes,
            })
        },
    );
    prop_oneof![
        file().prop_map(DriverOptions::File),
        file().prop_map(DriverOptions::HostDevice),
        null,
    ]
}

fn any_upper(inner: impl Strategy<Value = Child> + Clone) -> impl Strategy<Value = DriverOptions> {
    let size = || prop::option::of(0..=i64::MAX.cast_unsigned());
    let raw = (inner.clone(), size(), size())
        .prop_map(|(file, offset, size)| DriverOptions::Raw(RawOptions { file, offset, size }));
    let bitmap = (".{0,5}", ".{0,5}").prop_map(|(node, name)| BitmapRef { node, name });
    let rest = (
        prop::option::of(bitmap),
        any_word(),
        any::<Option<u32>>(),
        any::<Option<u64>>(),
    );
    let cbw = (inner.clone(), inner.clone(), rest).prop_map(|(file, target, rest)| {
        let (bitmap, on_cbw_error, cbw_timeout, min_cluster_size) = rest;
        DriverOptions::CopyBeforeWrite(CbwOptions {
            file,
            target,
            bitmap,
            on_cbw_error,
            cbw_timeout,
            min_cluster_size,
        })
    });
    let access =
        inner.prop_map(|file| DriverOptions::SnapshotAccess(SnapshotAccessOptions { file }));
    prop_oneof![raw, cbw, access]
}

fn any_options() -> impl Strategy<Value = BlockdevOptions> {
    let node = |driver: BoxedStrategy<DriverOptions>| {
        (any_common(), driver).prop_map(|(common, driver)| BlockdevOptions { common, driver })
    };
    node(any_storage().boxed()).prop_recursive(4, 12, 2, move |inner| {
        let child = prop_oneof![
            ".{0,9}".prop_map(Child::Node),
            inner.prop_map(|options| Child::Options(Box::new(options))),
        ];
        node(any_upper(child).boxed())
    })
}

proptest! {
    #[test]
    fn options_survive_json_and_text(options in any_options()) {
        let json = options.to_json();
        let reader = Reader::new(&json, Leaves::Typed);
        prop_assert_eq!(BlockdevOptions::read(reader), Ok(options.clone()));
        let text = write_keyval(&json).unwrap();
        let tree = keyval::parse(&text, Some("driver")).unwrap();
        prop_assert_eq!(BlockdevOptions::read(Reader::of(&tree)), Ok(options.clone()));
        // Checking must not care how wild the values are.
        let _ = options.check();
    }

    #[test]
    fn any_text_is_options_or_an_error(
        text in "(raw|null-co|file|copy-before-write)(,[a-c.=,0-9-]{0,4}|\
                 ,(file|target|bitmap|cache)(\\.(driver|filename|direct|node|0))?=?.{0,6}|\
                 ,(size|offset|node-name|read-only)=.{0,6}){0,6}",
    ) {
        let _ = BlockdevOptions::parse(&text);
    }
}
