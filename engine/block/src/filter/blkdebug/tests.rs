//! The filter on a simulated machine: order, serialisation, suspension.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringback_ring::file::Cache;
use ringback_ring::lock::Permission;
use ringback_ring::shard::Task;
use ringback_ring::sim::{FileOptions, Random, Sim};
use ringback_ring::{Errno, IoResult, Shard};

use super::*;
use crate::graph::{Access, Graph, GraphError, NodeSpec};
use crate::port::{Attachment, Port};

const SIZE: u64 = 1 << 16;

/// What the disk is: raw above blkdebug above a file.
struct Disk {
    shard: Shard,
    graph: Graph,
    port: Rc<Port>,
    filter: Arc<BlkDebug>,
    attachment: Attachment,
    notices: Arc<Mutex<Vec<String>>>,
}

fn file_node() -> NodeSpec {
    NodeSpec::File {
        path: PathBuf::from("disk"),
        write: true,
        cache: Cache::Auto,
        discard: true,
    }
}

const WRITER: Access = Access {
    read: true,
    write: true,
    alone_writing: false,
    resize: false,
    keeps_size: false,
};

async fn disk(shard: &Shard, options: Options) -> Disk {
    let mut graph = Graph::new();
    graph.add(shard, "file", file_node()).await.expect("a file");
    let image = "file".into();
    let spec = NodeSpec::BlkDebug { image, options };
    graph.add(shard, "debug", spec).await.expect("a filter");
    let raw = NodeSpec::Raw {
        file: "debug".into(),
        offset: 0,
        size: None,
    };
    graph.add(shard, "raw", raw).await.expect("a format");
    let (_, attachment) = graph
        .attach(shard, "raw", "test", WRITER)
        .await
        .expect("nobody else is there");
    let filter = graph.blkdebug("raw").expect("it is there");
    let notices = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&notices);
    filter.listen(move |notice| sink.lock().expect("not poisoned").push(notice.to_string()));
    Disk {
        shard: shard.clone(),
        port: attachment.port(shard),
        graph,
        filter,
        attachment,
        notices,
    }
}

impl Disk {
    fn write(&self, offset: u64, len: usize, value: u8) -> Task<IoResult<()>> {
        let (shard, port) = (self.shard.clone(), Rc::clone(&self.port));
        self.shard.spawn(async move {
            let mut buf = shard.buffer(len).await;
            buf.fill(value);
            port.write(&shard, offset, buf, 0..len).await.0
        })
    }

    async fn read(&self, offset: u64, len: usize) -> IoResult<Vec<u8>> {
        let buf = self.shard.buffer(len).await;
        let (result, buf) = self.port.read(&self.shard, offset, buf, 0..len).await;
        result.map(|()| buf[..len].to_vec())
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> IoResult<()> {
        let span = Span::new(offset, len);
        self.port.write_zeroes(&self.shard, span, flags).await
    }
}

/// Runs `test` on a fresh disk of one's own.
fn on_disk<F: Future<Output = ()> + 'static>(
    seed: u64,
    options: Options,
    test: impl FnOnce(Disk) -> F + Send + 'static,
) -> Vec<u8> {
    let mut sim = Sim::new(seed, 1);
    sim.world().create("disk", SIZE, FileOptions::default());
    let answer = sim.shards().spawn_on(0, |shard| async move {
        let disk = disk(&shard, options).await;
        test(disk).await;
    });
    sim.run(&answer).expect("it ends");
    sim.world().content("disk")
}

fn aligned() -> Options {
    Options {
        align: 4096,
        ..Options::default()
    }
}

fn inject(change: impl FnOnce(&mut InjectError)) -> Options {
    let mut rule = InjectError::new(Event::None);
    change(&mut rule);
    Options {
        inject_error: vec![rule],
        ..Options::default()
    }
}

/// Neighbouring writes inside the same units; whether all are there.
fn keeps_neighbours(seed: u64) -> bool {
    let content = on_disk(seed, aligned(), |disk| async move {
        let writes: Vec<_> = (0..8)
            .map(|index: u8| disk.write(u64::from(index) * 700 + 100, 700, index + 1))
            .collect();
        for write in writes {
            write.join().await.expect("a write");
        }
    });
    (0..8).all(|index| {
        let start = index * 700 + 100;
        let own = &content[start..start + 700];
        own.iter().all(|&byte| usize::from(byte) == index + 1)
    })
}

#[test]
fn overlapping_unaligned_writes_are_serialised() {
    for seed in 0..50 {
        assert!(keeps_neighbours(seed), "seed {seed}: a write is lost");
    }
}

#[test]
#[cfg(debug_assertions)]
fn without_turns_unaligned_writes_are_lost() {
    let _planted = crate::planted::plant(crate::planted::Fault::UnalignedNotSerialised);
    assert!((0..50).any(|seed| !keeps_neighbours(seed)));
}

#[test]
fn a_suspended_edge_read_holds_back_what_overlaps_and_nothing_else() {
    let content = on_disk(1, aligned(), |disk| async move {
        disk.filter.set_breakpoint(Event::PwritevRmwAfterHead, "A");
        let held = disk.write(100, 100, 1);
        disk.filter.wait_break(&disk.shard, "A").await;
        let overlapping = disk.write(300, 100, 2);
        let whole = disk.write(0, 4096, 3);
        let elsewhere = disk.write(8192 + 100, 100, 4);
        elsewhere.join().await.expect("a write");
        assert_eq!(disk.read(0, 512).await.expect("a read")[100], 0);
        disk.shard.sleep_ns(10_000_000).await;
        assert!(!held.is_finished() && !overlapping.is_finished() && !whole.is_finished());
        disk.filter.resume("A").expect("it is held");
        assert_eq!(disk.filter.resume("A"), Err(Errno::ENOENT));
        for write in [held, overlapping, whole] {
            write.join().await.expect("a write");
        }
        assert_eq!(
            *disk.notices.lock().expect("not poisoned"),
            [
                "blkdebug: Suspended request 'A'",
                "blkdebug: Resuming request 'A'"
            ]
        );
    });
    assert_eq!(content[8292], 4);
}

#[test]
fn without_a_unit_a_suspended_write_holds_nobody_back() {
    on_disk(2, Options::default(), |disk| async move {
        disk.filter.set_breakpoint(Event::WriteAio, "A");
        disk.filter.set_breakpoint(Event::WriteAio, "B");
        let held = disk.write(0, 4096, 1);
        disk.filter.wait_break(&disk.shard, "A").await;
        disk.write(0, 4096, 2).join().await.expect("a write");
        disk.filter.resume("A").expect("held");
        disk.shard.sleep_ns(1_000_000).await;
        assert!(!held.is_finished(), "B holds it too");
        assert!(disk.filter.is_suspended("B"));
        assert_eq!(
            disk.filter.remove_breakpoint("B"),
            Err(Errno::ENOENT),
            "it was used up"
        );
        held.join().await.expect("a write");
        assert_eq!(disk.read(0, 512).await.expect("a read")[0], 1);
    });
}

#[test]
fn a_drain_waits_for_suspended_requests_until_all_are_resumed() {
    on_disk(3, Options::default(), |disk| async move {
        disk.filter.set_breakpoint(Event::Pwritev, "A");
        let held = disk.write(0, 512, 1);
        disk.filter.wait_break(&disk.shard, "A").await;
        let attachment = disk.attachment.clone();
        let drain = disk.shard.spawn(async move { attachment.drain().await });
        disk.shard.sleep_ns(1_000_000).await;
        assert!(!drain.is_finished());
        disk.filter.resume_all();
        drain.join().await;
        held.join().await.expect("a write");
    });
}

/// Every event of a request, in order.
fn events_of<F: Future<Output = ()> + 'static>(
    options: Options,
    request: impl FnOnce(Rc<Disk>) -> F + Send + 'static,
) -> Vec<String> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    on_disk(4, options, |disk| async move {
        let disk = Rc::new(disk);
        for &event in Event::ALL {
            disk.filter.set_breakpoint(event, event.name());
        }
        let task = {
            let disk = Rc::clone(&disk);
            disk.shard.clone().spawn(request(disk))
        };
        while !task.is_finished() {
            for &event in Event::ALL {
                // What is suspended sets its breakpoint anew.
                if disk.filter.resume(event.name()).is_ok() {
                    disk.filter.set_breakpoint(event, event.name());
                }
            }
            disk.shard.sleep_ns(10_000).await;
        }
        let notices = disk.notices.lock().expect("not poisoned");
        *sink.lock().expect("not poisoned") = notices
            .iter()
            .filter_map(|text| text.strip_prefix("blkdebug: Suspended request '"))
            .map(|tag| tag.trim_end_matches('\'').to_owned())
            .collect();
    });
    Arc::try_unwrap(seen)
        .expect("the run is over")
        .into_inner()
        .expect("not poisoned")
}

#[test]
fn events_come_in_qemus_order() {
    let write = |offset, len| {
        events_of(aligned(), move |disk| async move {
            disk.write(offset, len, 1).join().await.expect("a write");
        })
    };
    assert_eq!(write(4096, 8192), ["write_aio", "pwritev", "pwritev_done"]);
    let (head, after_head) = ("pwritev_rmw_head", "pwritev_rmw_after_head");
    let (tail, after_tail) = ("pwritev_rmw_tail", "pwritev_rmw_after_tail");
    let (begin, end) = ("write_aio", ["pwritev", "pwritev_done"]);
    assert_eq!(
        write(100, 3996),
        [&[begin, head, after_head], &end[..]].concat()
    );
    assert_eq!(
        write(4096, 100),
        [&[begin, tail, after_tail], &end[..]].concat()
    );
    for (offset, len) in [(100, 100), (100, 5000)] {
        assert_eq!(
            write(offset, len),
            [&[begin, head, tail, after_head, after_tail], &end[..]].concat()
        );
    }
    assert_eq!(
        write(100, 10_000),
        [&[begin, head, after_head, tail, after_tail], &end[..]].concat()
    );
    let others = events_of(aligned(), |disk| async move {
        disk.read(100, 100).await.expect("a read");
        disk.port.flush(&disk.shard).await.expect("a flush");
        disk.zero(0, 4096, ZeroFlags::KEEP).await.expect("zeroes");
        disk.port.flush(&disk.shard).await.expect("a flush");
        disk.zero(100, 12_288, ZeroFlags::KEEP)
            .await
            .expect("zeroes");
    });
    let unaligned_zeroes = [
        &[head, after_head, tail, after_tail],
        &end[..],
        &["pwritev_zero", "pwritev_done"],
        &end[..],
    ]
    .concat();
    assert_eq!(
        others,
        [
            &["read_aio", "flush_to_os", "pwritev_zero", "pwritev_done"][..],
            &["flush_to_os", "flush_to_disk"],
            &unaligned_zeroes[..]
        ]
        .concat()
    );
}

#[test]
fn unaligned_zeroes_zero_exactly_what_was_asked_for() {
    let content = on_disk(5, aligned(), |disk| async move {
        disk.write(0, 32_768, 7).join().await.expect("a write");
        for (offset, len) in [(100, 50), (4000, 200), (9000, 12_000), (28_672, 100)] {
            disk.zero(offset, len, ZeroFlags::KEEP)
                .await
                .expect("zeroes");
        }
    });
    for (at, &byte) in content[..32_768].iter().enumerate() {
        let zeroed = [100..150, 4000..4200, 9000..21_000, 28_672..28_772]
            .iter()
            .any(|range| range.contains(&at));
        assert_eq!(byte, if zeroed { 0 } else { 7 }, "byte {at}");
    }
}

#[test]
fn each_fragment_is_a_request_of_its_own() {
    let mut options = inject(|rule| (rule.io_type, rule.sector) = (Some(IoType::Write), Some(16)));
    options.max_transfer = 4096;
    let content = on_disk(6, options, |disk| async move {
        assert_eq!(disk.write(0, 16_384, 1).join().await, Err(Errno::EIO));
        assert_eq!(
            disk.read(0, 16_384).await.map(|bytes| bytes.len()),
            Ok(16_384)
        );
    });
    assert_eq!((content[8191], content[8192], content[12_288]), (1, 0, 0));
}

#[test]
fn short_zero_writes_are_writes() {
    let mut options = inject(|rule| rule.io_type = Some(IoType::WriteZeroes));
    options.opt_write_zero = 4096;
    on_disk(7, options, |disk| async move {
        assert_eq!(disk.zero(512, 512, ZeroFlags::KEEP).await, Ok(()));
        let strict = ZeroFlags {
            no_fallback: true,
            ..ZeroFlags::KEEP
        };
        assert_eq!(disk.zero(512, 512, strict).await, Err(Errno::EOPNOTSUPP));
        assert_eq!(disk.zero(0, 4096, strict).await, Err(Errno::EIO));
    });
}

#[test]
fn discards_of_any_shape_are_served() {
    for options in [
        Options {
            align: 512,
            ..Options::default()
        },
        Options {
            opt_discard: 4096,
            max_discard: 8192,
            ..Options::default()
        },
        Options {
            opt_discard: 1536,
            ..aligned_to(512)
        },
    ] {
        on_disk(8, options, |disk| async move {
            for (offset, len) in [(100, 600), (0, 100), (1, 60_000), (4096, 4096), (511, 2)] {
                let span = Span::new(offset, len);
                disk.port
                    .discard(&disk.shard, span)
                    .await
                    .expect("a discard");
            }
        });
    }
}

fn aligned_to(align: u64) -> Options {
    Options {
        align,
        ..Options::default()
    }
}

#[test]
fn a_flush_is_judged_only_if_something_was_written() {
    let options = inject(|rule| (rule.io_type, rule.once) = (Some(IoType::Flush), true));
    on_disk(9, options, |disk| async move {
        assert_eq!(disk.port.flush(&disk.shard).await, Ok(()));
        disk.write(0, 512, 1).join().await.expect("a write");
        assert_eq!(disk.port.flush(&disk.shard).await, Err(Errno::EIO));
        assert_eq!(disk.port.flush(&disk.shard).await, Ok(()));
    });
}

#[test]
fn a_write_whose_edges_cannot_be_read_fails_and_changes_nothing() {
    let mut options = inject(|rule| rule.io_type = Some(IoType::Read));
    options.align = 4096;
    let content = on_disk(10, options, |disk| async move {
        assert_eq!(disk.write(100, 100, 1).join().await, Err(Errno::EIO));
    });
    assert!(content.iter().all(|&byte| byte == 0));
}

#[test]
fn only_a_direct_child_hears_of_a_formats_events() {
    let options = Options {
        inject_error: vec![InjectError::new(Event::ReadAio)],
        ..Options::default()
    };
    on_disk(11, options, |mut disk| async move {
        assert_eq!(disk.read(0, 512).await, Err(Errno::EIO));
        // A window on the window: its events go to the first one.
        let options = Options {
            inject_error: vec![InjectError::new(Event::ReadAio)],
            ..Options::default()
        };
        let shard = disk.shard.clone();
        for (name, spec) in [
            (
                "other",
                NodeSpec::BlkDebug {
                    image: "file".into(),
                    options,
                },
            ),
            (
                "middle",
                NodeSpec::BlkDebug {
                    image: "other".into(),
                    options: Options::default(),
                },
            ),
            (
                "top",
                NodeSpec::Raw {
                    file: "middle".into(),
                    offset: 0,
                    size: None,
                },
            ),
        ] {
            disk.graph.add(&shard, name, spec).await.expect("a node");
        }
        let (_, top) = disk
            .graph
            .attach(&shard, "top", "test", WRITER)
            .await
            .expect("an attachment");
        disk.port = top.port(&shard);
        assert!(disk.read(0, 512).await.is_ok());
    });
}

#[test]
fn limits_and_permissions_are_checked() {
    on_disk(12, Options::default(), |mut disk| async move {
        let shard = disk.shard.clone();
        let add = async |graph: &mut Graph, name: &str, options: Options| {
            let image = "file".into();
            let spec = NodeSpec::BlkDebug { image, options };
            graph
                .add(&shard, name, spec)
                .await
                .map_err(|error| error.to_string())
        };
        let graph = &mut disk.graph;
        let bad = Options {
            max_transfer: 1000,
            ..Options::default()
        };
        assert_eq!(
            add(graph, "bad", bad).await,
            Err("Cannot meet constraints with max-transfer 1000".into()),
            "the file wants sectors"
        );
        let alone = Options {
            unshare_child_perms: vec![Permission::Write],
            ..Options::default()
        };
        assert_eq!(
            add(graph, "alone", alone).await,
            Err(
                "Permission conflict on node 'file': permissions 'write' are both required by \
                 test (uses node 'raw' as 'root' child) and unshared by node 'alone' (uses node \
                 'file' as 'image' child)."
                    .into()
            )
        );
        assert!(matches!(graph.size("alone"), Err(GraphError::NotFound(_))));
        let writing = Options {
            take_child_perms: vec![Permission::Write],
            ..Options::default()
        };
        assert_eq!(add(graph, "writing", writing).await, Ok(()));
        let minding = Access {
            alone_writing: true,
            ..Access::default()
        };
        let refused = graph.attach(&shard, "file", "other", minding).await;
        assert!(matches!(refused, Err(GraphError::Conflict { .. })));
        // 64 KiB is no multiple of 3 * 2^k, but units are powers of two.
        let large = aligned_to(1 << 17);
        assert_eq!(add(graph, "large", large).await, Ok(()));
        let refused = graph.attach(&shard, "large", "other", WRITER).await;
        assert!(matches!(refused, Err(GraphError::NotWhole)));
    });
}

/// Limits that go together.
fn any_limits(random: &mut Random) -> Options {
    let align = [0, 512, 4096][random.index(3)];
    let unit = align.max(512);
    let mut some = |unit: u64| match random.below(3) {
        0 => 0,
        _ => unit * (1 + random.below(6)),
    };
    let (opt_write_zero, opt_discard) = (some(unit), some(unit));
    Options {
        align,
        max_transfer: some(unit),
        opt_write_zero,
        max_write_zero: some(unit.max(opt_write_zero)),
        opt_discard,
        max_discard: some(unit.max(opt_discard)),
        ..Options::default()
    }
}

/// Guests change parts of their own that share units; each checks what it
/// reads.
async fn change_stripes(disk: Disk, seed: u64, expected: Rc<RefCell<Vec<u8>>>) {
    const STRIPE: u64 = 9_700;
    let disk = Rc::new(disk);
    let guests: Vec<_> = (0..6)
        .map(|guest| {
            let (disk, expected) = (Rc::clone(&disk), Rc::clone(&expected));
            let mut random = Random::new(seed * 100 + guest);
            disk.shard.clone().spawn(async move {
                for round in 0..30u8 {
                    let start = guest * STRIPE + random.below(STRIPE);
                    let len = 1 + random.below((guest + 1) * STRIPE - start);
                    let (from, to) = (in_memory(start), in_memory(start + len));
                    match random.below(5) {
                        0 => {
                            disk.zero(start, len, ZeroFlags::UNMAP)
                                .await
                                .expect("zeroes");
                            expected.borrow_mut()[from..to].fill(0);
                        }
                        1 => {
                            let read = disk.read(start, to - from).await.expect("a read");
                            assert!(read == expected.borrow()[from..to], "at {start}");
                        }
                        _ => {
                            let write = disk.write(start, to - from, round + 1);
                            write.join().await.expect("a write");
                            expected.borrow_mut()[from..to].fill(round + 1);
                        }
                    }
                }
            })
        })
        .collect();
    for guest in guests {
        guest.join().await;
    }
}

#[test]
fn whatever_the_limits_bytes_are_where_they_belong() {
    for seed in 0..60 {
        let options = any_limits(&mut Random::new(seed));
        let wanted = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&wanted);
        let content = on_disk(seed, options.clone(), move |disk| async move {
            let expected = Rc::new(RefCell::new(vec![0; in_memory(SIZE)]));
            change_stripes(disk, seed, Rc::clone(&expected)).await;
            sink.lock()
                .expect("not poisoned")
                .clone_from(&expected.borrow());
        });
        let wanted = wanted.lock().expect("not poisoned");
        assert!(content == *wanted, "seed {seed}: {options:?}");
    }
}

proptest::proptest! {
    #[test]
    fn cut_spans_are_whole_units_but_for_the_ends(
        offset in 0u64..100_000,
        len in 0u64..100_000,
        unit in 1u64..5000,
        len_max in proptest::option::of(1u64..20_000),
    ) {
        let span = Span::new(offset, len);
        let pieces = cut(span, unit, len_max);
        let mut at = offset;
        for piece in &pieces {
            proptest::prop_assert_eq!(piece.offset, at);
            proptest::prop_assert!(!piece.is_empty());
            proptest::prop_assert!(piece.len <= len_max.unwrap_or(u64::MAX).max(unit));
            let is_whole = piece.offset % unit == 0 && piece.len % unit == 0;
            let is_end = piece.offset == offset || piece.end() == span.end();
            proptest::prop_assert!(is_whole || is_end);
            at = piece.end();
        }
        proptest::prop_assert_eq!(at, span.end());
    }
}
