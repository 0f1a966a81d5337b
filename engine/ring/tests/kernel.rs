//! The kernel's ring, on real files: each feature set, several shards.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;

use ringback_ring::file::{Cache, Kind, OpenError, OpenOptions};
use ringback_ring::lock::{Locks, Permission};
use ringback_ring::probe::Feature;
use ringback_ring::shards::Config;
use ringback_ring::socket::readable;
use ringback_ring::{Errno, File, Shards};

fn start(count: usize, masked: &[Feature]) -> Shards {
    let config = Config {
        count,
        masked: masked.to_vec(),
        arena_bytes: 8 << 20,
        ..Config::default()
    };
    Shards::start(&config).expect("shards start")
}

fn options(path: &Path, write: bool) -> OpenOptions {
    OpenOptions {
        path: path.to_owned(),
        write,
        cache: Cache::Auto,
    }
}

fn image(len: u64) -> tempfile::NamedTempFile {
    // Not in /tmp: that may be a tmpfs, which has little to say about O_DIRECT.
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.as_file().set_len(len).expect("a size");
    file
}

/// Writes a pattern on one shard, reads it on every shard.
fn round_trip(shards: &Shards, path: PathBuf) {
    let written = shards.spawn_on(0, move |shard| async move {
        let file = File::open(&shard, options(&path, true))
            .await
            .expect("open");
        let mut buf = shard.buffer(65536).await;
        for (index, byte) in buf.iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).expect("below 251");
        }
        let (result, _) = file.write(&shard, buf, 0..65536, 8192).await;
        assert_eq!(result, Ok(65536));
        file.sync(&shard).await.expect("sync");
        file
    });
    let file = written.wait().expect("an answer");
    for index in 0..shards.count() {
        let file = file.clone();
        let read = shards.spawn_on(index, move |shard| async move {
            let buf = shard.buffer(65536).await;
            let (result, buf) = file.read(&shard, buf, 0..65536, 8192).await;
            assert_eq!(result, Ok(65536));
            buf.iter()
                .enumerate()
                .all(|(index, &byte)| usize::from(byte) == index % 251)
        });
        assert!(
            read.wait().expect("an answer"),
            "shard {index} read something else"
        );
    }
}

#[test]
fn every_feature_set_moves_the_same_bytes() {
    let mut masks: Vec<Vec<Feature>> = Feature::ALL.iter().map(|&feature| vec![feature]).collect();
    masks.push(Vec::new());
    masks.push(Feature::ALL.to_vec());
    for masked in masks {
        let image = image(1 << 20);
        let shards = start(2, &masked);
        for feature in &masked {
            assert!(
                !shards.features().has(*feature),
                "{} is masked",
                feature.name()
            );
        }
        round_trip(&shards, image.path().to_owned());
        shards.stop();
    }
}

/// It looks for work for an hour at a time: who is missed is missed for good.
#[test]
fn a_shard_that_does_not_sleep_misses_nobody() {
    for masked in [Vec::new(), Feature::ALL.to_vec()] {
        let config = Config {
            count: 2,
            poll_ns: 3_600_000_000_000,
            masked,
            ..Config::default()
        };
        let shards = Shards::start(&config).expect("shards start");
        let image = image(1 << 20);
        round_trip(&shards, image.path().to_owned());
        let set = shards.clone();
        let answers = shards.spawn_on(0, move |shard| async move {
            shard.sleep_ns(1_000_000).await;
            let there = set.spawn_on(1, |shard| async move { shard.index() });
            let helper = shard.blocking(|| 7).await;
            (there.await, helper)
        });
        assert_eq!(answers.wait(), Ok((Ok(1), 7)));
        shards.stop();
    }
}

#[test]
fn a_full_submission_queue_is_an_ordinary_event() {
    let image = image(1 << 20);
    let config = Config {
        count: 1,
        ring_entries: 4,
        ..Config::default()
    };
    let shards = Shards::start(&config).expect("shards start");
    let path = image.path().to_owned();
    let done = shards.spawn_on(0, move |shard| async move {
        let file = File::open(&shard, options(&path, true))
            .await
            .expect("open");
        let tasks: Vec<_> = (0..200)
            .map(|index: u64| {
                let (file, shard) = (file.clone(), shard.clone());
                shard.clone().spawn(async move {
                    let buf = shard.buffer(4096).await;
                    file.write(&shard, buf, 0..4096, index * 4096).await.0
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.join().await, Ok(4096));
        }
    });
    done.wait().expect("an answer");
    shards.stop();
}

#[test]
fn timers_fire_in_order_and_not_early() {
    let shards = start(1, &[]);
    let order = shards.spawn_on(0, |shard| async move {
        let start = shard.now_ns();
        let tasks: Vec<_> = [3_000_000, 1_000_000, 2_000_000]
            .map(|delay| {
                let shard = shard.clone();
                shard.clone().spawn(async move {
                    shard.sleep_ns(delay).await;
                    assert!(shard.now_ns() >= start + delay);
                    shard.now_ns()
                })
            })
            .into();
        let mut ends = Vec::new();
        for task in tasks {
            ends.push(task.join().await);
        }
        ends
    });
    let ends = order.wait().expect("an answer");
    assert!(ends[1] <= ends[2] && ends[2] <= ends[0]);
    shards.stop();
}

#[test]
fn shards_talk_to_each_other_while_idle() {
    let shards = start(2, &[]);
    let set = shards.clone();
    let count = shards.spawn_on(0, move |_| async move {
        let mut count = 0;
        for _ in 0..1000 {
            count = set
                .spawn_on(1, move |_| async move { count + 1 })
                .await
                .expect("an answer");
        }
        count
    });
    assert_eq!(count.wait(), Ok(1000));
    shards.stop();
}

#[test]
fn a_dropped_operation_keeps_its_buffer_until_it_ends() {
    let image = image(1 << 20);
    let shards = start(1, &[]);
    let path = image.path().to_owned();
    let done = shards.spawn_on(0, move |shard| async move {
        let file = File::open(&shard, options(&path, true))
            .await
            .expect("open");
        for _ in 0..100 {
            let mut buf = shard.buffer(1 << 20).await;
            buf.fill(7);
            let mut write = Box::pin(file.write(&shard, buf, 0..1 << 20, 0));
            // Polled once, then dropped while the kernel works on it.
            std::future::poll_fn(|cx| {
                let _ = write.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(write);
        }
    });
    done.wait().expect("an answer");
    shards.stop();
}

#[test]
fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let shards = start(1, &[]);
    let open = |path: PathBuf, write| {
        let opened = shards.spawn_on(0, move |shard| async move {
            File::open(&shard, options(&path, write)).await.map(drop)
        });
        opened.wait().expect("an answer")
    };
    let missing = directory.path().join("missing");
    let error = open(missing.clone(), true).expect_err("missing");
    assert_eq!(
        error.to_string(),
        format!(
            "Could not open '{}': No such file or directory",
            missing.display()
        )
    );
    let error = open(directory.path().to_owned(), true).expect_err("a directory");
    assert!(
        matches!(
            error,
            OpenError::WrongKind {
                what: "a directory",
                ..
            }
        ),
        "{error}"
    );
    let error = open("/dev/null".into(), true).expect_err("a character device");
    assert!(matches!(error, OpenError::WrongKind { .. }), "{error}");
    shards.stop();
}

#[test]
fn holes_and_discards_are_seen_by_seek() {
    let image = image(1 << 20);
    let shards = start(1, &[]);
    let path = image.path().to_owned();
    let done = shards.spawn_on(0, move |shard| async move {
        let file = File::open(&shard, options(&path, true))
            .await
            .expect("open");
        assert_eq!(file.geometry().kind, Kind::Regular);
        assert_eq!(file.seek_data(&shard, 0).await, Err(Errno::ENXIO));
        let buf = shard.buffer(65536).await;
        assert_eq!(
            file.write(&shard, buf, 0..65536, 131_072).await.0,
            Ok(65536)
        );
        assert_eq!(file.seek_data(&shard, 0).await, Ok(131_072));
        assert_eq!(file.seek_hole(&shard, 131_072).await, Ok(196_608));
        file.punch_hole(&shard, 131_072, 65536)
            .await
            .expect("punch");
        assert_eq!(file.seek_data(&shard, 0).await, Err(Errno::ENXIO));
        assert_eq!(file.size(&shard).await, Ok(1 << 20));
    });
    done.wait().expect("an answer");
    shards.stop();
}

#[test]
fn closing_a_file_gives_its_locks_back() {
    use ringback_ring::lock::{Locks, Permission};
    let image = image(1 << 20);
    let shards = start(2, &[]);
    let path = image.path().to_owned();
    let done = shards.spawn_on(0, move |shard| async move {
        for _ in 0..20 {
            let file = File::open(&shard, options(&path, true))
                .await
                .expect("open");
            // A lock that nobody else may have at the same time.
            let alone = Locks {
                held: vec![Permission::Write],
                unshared: vec![Permission::Write],
            };
            let mut locked = file.lock(&alone);
            while locked.is_err() {
                // The last round's slots are being emptied on the other shard.
                shard.sleep_ns(100_000).await;
                locked = file.lock(&alone);
            }
            drop(file);
        }
    });
    done.wait().expect("an answer");
    shards.stop();
}

/// A copy of the descriptor under which this process has a file open, as a process
/// gets it that is being started just now.
fn copy_of_descriptor(path: &Path) -> std::os::fd::OwnedFd {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let number = entries
        .filter_map(Result::ok)
        .find(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path))
        .and_then(|entry| entry.file_name().to_str()?.parse().ok());
    let number = number.expect("the file is open");
    ringback_ring::inherited_descriptor(number).expect("a copy")
}

#[test]
fn locks_go_with_the_file_and_not_with_the_last_descriptor() {
    let image = image(4096);
    // Opened by name, so that there is one descriptor only.
    let path = image.into_temp_path();
    let name = path.to_path_buf();
    let shards = start(1, &[]);
    let done = shards.spawn_on(0, move |shard| async move {
        let locks = Locks {
            held: vec![Permission::Write],
            unshared: vec![Permission::Write],
        };
        let mut copies = Vec::new();
        for _ in 0..3 {
            let file = File::open(&shard, options(&name, true)).await;
            let file = file.expect("open");
            file.lock(&locks).expect("nobody has it");
            copies.push(copy_of_descriptor(&name));
        }
    });
    done.wait().expect("an answer");
    shards.stop();
}

/// A wait for connections ends when it is stopped, when it is dropped, and with its
/// shard; the socket, which somebody else holds, too, goes on to listen.
#[test]
fn a_wait_for_connections_ends_and_the_socket_stays() {
    for masked in [Vec::new(), Feature::ALL.to_vec()] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let ours = OwnedFd::from(listener.try_clone().expect("a descriptor"));
        let shards = start(1, &masked);
        let done = shards.spawn_on(0, move |shard| async move {
            let socket = Rc::new(ours);
            let stopped = readable(&shard, &socket, shard.sleep_ns(1_000_000)).await;
            assert_eq!(stopped, Err(Errno::ECANCELED));
            assert_eq!(Rc::strong_count(&socket), 1, "nothing is in flight");
            {
                let mut waiting = pin!(readable(&shard, &socket, std::future::pending()));
                std::future::poll_fn(|cx| {
                    assert!(waiting.as_mut().poll(cx).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                assert_eq!(Rc::strong_count(&socket), 2);
            }
            while Rc::strong_count(&socket) > 1 {
                shard.sleep_ns(100_000).await;
            }
            let waiting = readable(&shard, &socket, std::future::pending());
            let _client = TcpStream::connect(address).expect("somebody listens");
            assert_eq!(waiting.await, Ok(()));
        });
        done.wait().expect("an answer");
        listener.accept().expect("the first client");
        let ours = OwnedFd::from(listener.try_clone().expect("a descriptor"));
        let begun = shards.spawn_on(0, move |shard| async move {
            let here = shard.clone();
            shard.spawn(async move {
                let _ = readable(&here, &Rc::new(ours), std::future::pending()).await;
                panic!("nobody has connected");
            });
            shard.yield_now().await;
        });
        begun.wait().expect("an answer");
        shards.stop();
        let _client = TcpStream::connect(address).expect("somebody listens");
        listener.accept().expect("the second client");
    }
}
