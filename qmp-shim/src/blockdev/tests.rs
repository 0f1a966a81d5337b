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
                min-cluster-size=64k,save-buffer=1M";
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
            save_buffer: Some(1 << 20),
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

/// Every kind of address, with all that it can have.
#[test]
fn servers_of_exports_are_written_as_they_were_read() {
    for server in [
        json!({"type": "unix", "path": "s"}),
        json!({"type": "unix", "path": "s", "abstract": true, "tight": false}),
        json!({
            "type": "inet", "host": "h", "port": "1", "numeric": true, "keep-alive": true,
            "to": 2, "ipv4": true, "ipv6": false,
        }),
        json!({"type": "fd", "str": "9"}),
    ] {
        let given = json!({
            "driver": "nbd", "node-name": "a", "server": server, "export": "e",
            "tls-creds": "t", "tls-hostname": "h", "x-dirty-bitmap": "b",
            "reconnect-delay": 1, "open-timeout": 2,
        });
        let read = BlockdevOptions::from_arguments(given.as_object().unwrap()).unwrap();
        assert_eq!(Value::Object(read.to_json()), given);
    }
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
    let wanted = "Driver 'vmdk' is not supported by ringback; use one of: file, host_device, \
                  raw, null-co, nbd, copy-before-write, snapshot-access, qcow2, blkdebug, \
                  throttle, copy-on-read";
    assert_eq!(error("vmdk,node-name=a,file=b"), wanted);
    assert_eq!(error("raw,node-name=a,file.driver=vmdk"), wanted);
    assert_eq!(
        error("qcow3,node-name=a"),
        "Parameter 'driver' does not accept value 'qcow3'"
    );
}

#[test]
fn encryption_is_refused_by_name() {
    let wanted = "Parameter 'encrypt' is not supported by ringback; leave it out";
    assert_eq!(
        error("qcow2,node-name=a,file=b,encrypt.format=luks"),
        wanted
    );
}

fn qcow2(text: &str) -> Qcow2Options {
    let text = format!("qcow2,node-name=a,file=b,{text}");
    match parse(&text).unwrap().driver {
        DriverOptions::Qcow2(qcow2) => *qcow2,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_option_of_qcow2_is_read_into_its_place() {
    let found = qcow2(
        "backing=c,data-file=d,lazy-refcounts=on,pass-discard-request=on,\
         pass-discard-snapshot=off,pass-discard-other=on,discard-no-unref=off,cache-size=5,\
         l2-cache-size=4,l2-cache-entry-size=3,cache-clean-interval=2,\
         overlap-check.template=none,overlap-check.active-l2=on",
    );
    let wanted = Qcow2Options {
        file: Child::Node("b".to_owned()),
        backing: Some(Backing::Child(Child::Node("c".to_owned()))),
        data_file: Some(Child::Node("d".to_owned())),
        lazy_refcounts: Some(true),
        pass_discard_request: Some(true),
        pass_discard_snapshot: Some(false),
        pass_discard_other: Some(true),
        discard_no_unref: Some(false),
        overlap_check: Some(qcow2::OverlapCheck {
            template: Some(qcow2::OverlapTemplate::None),
            exceptions: qcow2::OverlapFlags {
                active_l2: Some(true),
                ..qcow2::OverlapFlags::default()
            },
        }),
        cache_size: Some(5),
        l2_cache_size: Some(4),
        l2_cache_entry_size: Some(3),
        refcount_cache_size: None,
        cache_clean_interval: Some(2),
    };
    assert_eq!(found, wanted);
    assert_eq!(qcow2("backing=").backing, Some(Backing::None));
    assert_eq!(qcow2("refcount-cache-size=7").refcount_cache_size, Some(7));
}

#[test]
fn overlap_checks_are_a_template_and_exceptions() {
    let set = |text: &str| qcow2(text).overlap_check.unwrap_or_default().settle();
    let cached = set("cache-size=1");
    assert!(cached.main_header && cached.active_l2 && cached.inactive_l1 && !cached.inactive_l2);
    assert_eq!(set("overlap-check=cached"), cached);
    let constant = set("overlap-check=constant");
    assert!(constant.bitmap_directory && !constant.refcount_block);
    assert!(set("overlap-check=all").inactive_l2);
    let none = set("overlap-check.template=none,overlap-check.refcount-table=on");
    assert!(none.refcount_table && !none.main_header && !none.active_l1);
    assert!(!set("overlap-check.main-header=off").main_header);
}

#[test]
fn rules_that_need_the_image_of_qcow2() {
    let image = qcow2::ImageFacts {
        cluster_size: 65536,
        version: 3,
        has_data_file: false,
    };
    let check = |text: &str, image| {
        let checked = qcow2(text).check_with_image(image);
        checked.map_err(|error| error.to_string())
    };
    for text in [
        "l2-cache-entry-size=512",
        "l2-cache-entry-size=65536",
        "lazy-refcounts=on",
        "refcount-cache-size=140737488289792",
    ] {
        assert_eq!(check(text, image), Ok(()), "{text}");
    }
    let entry = "L2 cache entry size must be a power of two between 512 and the cluster size \
                 (65536)";
    let old = qcow2::ImageFacts {
        version: 2,
        ..image
    };
    for (text, image, wanted) in [
        ("l2-cache-entry-size=0", image, entry),
        ("l2-cache-entry-size=256", image, entry),
        ("l2-cache-entry-size=131072", image, entry),
        ("l2-cache-entry-size=1000", image, entry),
        (
            "refcount-cache-size=140737488355328",
            image,
            "Refcount cache size too big",
        ),
        (
            "lazy-refcounts=on",
            old,
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
        ),
        (
            "discard-no-unref=on",
            old,
            "discard-no-unref is only supported since qcow2 version 3",
        ),
        (
            "data-file=x",
            image,
            "'data-file' can only be set for images with an external data file",
        ),
    ] {
        assert_eq!(check(text, image), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn rules_of_blkdebug_are_read_into_their_places() {
    use blkdebug::{Event, InjectError, IoType, Permission, RequestLimits, SetState};
    let text = "blkdebug,node-name=a,image=b,config=c,align=512,max-transfer=1024,\
                opt-write-zero=1536,max-write-zero=3072,opt-discard=2048,max-discard=4096,\
                inject-error.0.event=read_aio,inject-error.0.state=2,\
                inject-error.0.iotype=block-status,inject-error.0.errno=28,\
                inject-error.0.sector=3,inject-error.0.once=on,inject-error.0.immediately=off,\
                inject-error.1.event=none,set-state.0.event=l2_load,set-state.0.state=4,\
                set-state.0.new_state=5,take-child-perms.0=resize,unshare-child-perms.0=write";
    let DriverOptions::Blkdebug(found) = parse(text).unwrap().driver else {
        panic!("another driver");
    };
    let rule = InjectError {
        event: Event::None,
        state: None,
        iotype: None,
        errno: None,
        sector: None,
        once: None,
        immediately: None,
    };
    let wanted = BlkdebugOptions {
        image: Child::Node("b".to_owned()),
        config: Some("c".to_owned()),
        limits: RequestLimits {
            align: Some(512),
            max_transfer: Some(1024),
            opt_write_zero: Some(1536),
            max_write_zero: Some(3072),
            opt_discard: Some(2048),
            max_discard: Some(4096),
        },
        inject_error: vec![
            InjectError {
                event: Event::ReadAio,
                state: Some(2),
                iotype: Some(IoType::BlockStatus),
                errno: Some(28),
                sector: Some(3),
                once: Some(true),
                immediately: Some(false),
            },
            rule,
        ],
        set_state: vec![SetState {
            event: Event::L2Load,
            state: Some(4),
            new_state: 5,
        }],
        take_child_perms: vec![Permission::Resize],
        unshare_child_perms: vec![Permission::Write],
    };
    assert_eq!(*found, wanted);
    assert_eq!(Event::WORDS.len(), 48);
    // The image's alignment counts, too.
    let refused = OptionError::Constraint {
        name: "max-transfer",
        value: 1024,
    };
    assert_eq!(found.limits.check(4096), Err(refused));
}

#[test]
fn a_backing_file_is_read_only() {
    let parent = CommonOptions::default().settle(None);
    let backing = CommonOptions::default().settle(Some(&parent.for_backing()));
    assert!(backing.read_only && !backing.auto_read_only);
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

fn any_qcow2(inner: impl Strategy<Value = Child> + Clone) -> impl Strategy<Value = DriverOptions> {
    let size = || prop::option::of(0..=i64::MAX.cast_unsigned());
    let flag = any::<Option<bool>>;
    // Null has no text, and an empty object neither.
    let backing = prop::option::of(
        inner
            .clone()
            .prop_filter("an empty name is null", |child| {
                *child != Child::Node(String::new())
            })
            .prop_map(Backing::Child),
    );
    let overlap = (any_word(), flag(), flag())
        .prop_filter("an empty object", |found| *found != (None, None, None))
        .prop_map(|(template, main_header, inactive_l2)| qcow2::OverlapCheck {
            template,
            exceptions: qcow2::OverlapFlags {
                main_header,
                inactive_l2,
                ..qcow2::OverlapFlags::default()
            },
        });
    let rest = (backing, prop::option::of(overlap), flag(), flag());
    (
        inner.clone(),
        prop::option::of(inner),
        rest,
        size(),
        any::<Option<u32>>(),
    )
        .prop_map(|(file, data_file, rest, size, interval)| {
            let (backing, overlap_check, lazy_refcounts, discard_no_unref) = rest;
            DriverOptions::Qcow2(Box::new(Qcow2Options {
                backing,
                data_file,
                overlap_check,
                lazy_refcounts,
                discard_no_unref,
                l2_cache_size: size,
                cache_clean_interval: interval,
                ..Qcow2Options::new(file)
            }))
        })
}

fn any_blkdebug(inner: impl Strategy<Value = Child>) -> impl Strategy<Value = DriverOptions> {
    use blkdebug::{InjectError, RequestLimits, SetState};
    let numbers = (
        any::<Option<i32>>(),
        any::<Option<i32>>(),
        any::<Option<i64>>(),
    );
    let event = || any_word().prop_map(Option::unwrap_or_default);
    let rule = (event(), any_word(), numbers, any::<Option<bool>>()).prop_map(
        |(event, iotype, (state, errno, sector), once)| InjectError {
            event,
            state,
            iotype,
            errno,
            sector,
            once,
            immediately: once,
        },
    );
    let change =
        (event(), any::<Option<i32>>(), any::<i32>()).prop_map(|(event, state, new_state)| {
            SetState {
                event,
                state,
                new_state,
            }
        });
    let size = || prop::option::of(0..=i64::MAX.cast_unsigned());
    let limits = (size(), size()).prop_map(|(align, max_discard)| RequestLimits {
        align,
        max_discard,
        ..RequestLimits::default()
    });
    let perms = || prop::collection::vec(any_word().prop_map(Option::unwrap_or_default), 0..3);
    let rules = (
        prop::collection::vec(rule, 0..3),
        prop::collection::vec(change, 0..3),
        perms(),
    );
    (inner, prop::option::of(".{0,5}"), limits, rules).prop_map(
        |(image, config, limits, (inject_error, set_state, take_child_perms))| {
            DriverOptions::Blkdebug(Box::new(BlkdebugOptions {
                image,
                config,
                limits,
                inject_error,
                set_state,
                unshare_child_perms: take_child_perms.clone(),
                take_child_perms,
            }))
        },
    )
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
        any::<Option<u64>>(),
    );
    let cbw = (inner.clone(), inner.clone(), rest).prop_map(|(file, target, rest)| {
        let (bitmap, on_cbw_error, cbw_timeout, min_cluster_size, save_buffer) = rest;
        DriverOptions::CopyBeforeWrite(CbwOptions {
            file,
            target,
            bitmap,
            on_cbw_error,
            cbw_timeout,
            min_cluster_size,
            save_buffer,
        })
    });
    let access = inner
        .clone()
        .prop_map(|file| DriverOptions::SnapshotAccess(SnapshotAccessOptions { file }));
    let throttle = (inner.clone(), ".{0,5}").prop_map(|(file, throttle_group)| {
        DriverOptions::Throttle(ThrottleOptions {
            throttle_group,
            file,
        })
    });
    let copy_on_read = (inner.clone(), prop::option::of(".{0,5}"))
        .prop_map(|(file, bottom)| DriverOptions::CopyOnRead(CopyOnReadOptions { file, bottom }));
    prop_oneof![
        raw,
        cbw,
        access,
        throttle,
        copy_on_read,
        any_qcow2(inner.clone()),
        any_blkdebug(inner)
    ]
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
