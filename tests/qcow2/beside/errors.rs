//! Injected errors: neither program may damage an image, or lose what it has
//! acknowledged and flushed.
//!
//! The two meet errors at different moments, for metadata goes to the file in
//! another order. So each is held against a model of its own, and both against
//! `qemu-img check`.

use std::fmt::Write;

use ringback_ring::sim::Random;

use super::chain::{Chain, TOP};
use super::each_seed;
use super::pair::{Pair, Program, check, said, shell};

/// Where errors hit.
const EVENTS: &[&str] = &[
    "write_aio",
    "l2_load",
    "l2_update",
    "l2_alloc_write",
    "l1_update",
    "refblock_load",
    "refblock_alloc",
    "refblock_update_part",
    "flush_to_os",
    "flush_to_disk",
    "cluster_alloc",
    "cow_read",
    "cow_write",
    "read_aio",
    "pwritev",
    "pwritev_zero",
];

#[test]
fn injected_errors_damage_nothing() {
    each_seed(30, |seed| {
        let mut random = Random::new(seed ^ 0x0e44_0e44);
        let chain = Chain::new(&mut random);
        session(&chain, &mut random).map_err(|error| format!("{chain:?}: {error}"))
    });
}

/// What a byte of the disk is known to be.
type Model = Vec<Option<u8>>;

/// A request of a session, each with a line of its own in the output.
#[derive(Clone, Debug)]
enum Request {
    Write { offset: u64, len: u64, byte: u8 },
    Zero { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Read { offset: u64, len: u64 },
}

impl Request {
    fn new(random: &mut Random, chain: &Chain) -> Self {
        let unit = [512, chain.cluster][random.index(2)];
        let offset = random.below(chain.size) / unit * unit;
        let longest = [1024, chain.cluster * 3][random.index(2)];
        let len = (1 + random.below(longest)).min(chain.size - offset);
        match random.below(10) {
            0..6 => Self::Write {
                offset,
                len,
                byte: 1 + random.below(250) as u8,
            },
            6 => Self::Zero {
                offset,
                len,
                unmap: random.below(2) == 0,
            },
            7 => Self::Discard { offset, len },
            _ => Self::Read { offset, len },
        }
    }

    fn command(&self) -> String {
        match self {
            Self::Write { offset, len, byte } => format!("write -P {byte} {offset} {len}"),
            Self::Zero { offset, len, unmap } => {
                let unmap = if *unmap { "-u " } else { "" };
                format!("write -z {unmap}{offset} {len}")
            }
            Self::Discard { offset, len } => format!("discard {offset} {len}"),
            Self::Read { offset, len } => format!("read {offset} {len}"),
        }
    }

    /// What is known when it has been answered, well or not.
    fn learn(&self, model: &mut Model, succeeded: bool) {
        let (offset, len, byte) = match *self {
            Self::Write { offset, len, byte } => (offset, len, succeeded.then_some(byte)),
            Self::Zero { offset, len, .. } => (offset, len, succeeded.then_some(0)),
            Self::Discard { offset, len } => (offset, len, None),
            Self::Read { .. } => return,
        };
        model[offset as usize..(offset + len) as usize].fill(byte);
    }
}

fn session(chain: &Chain, random: &mut Random) -> Result<(), String> {
    let pair = Pair::new(chain, random);
    // Every write is acknowledged when it is flushed, or all are by the end.
    let flushes = random.below(2) == 0;
    let options = options(random);
    let mode = if flushes { "writethrough" } else { "writeback" };
    let mut words: Vec<String> = ["-t", mode, "--image-opts", &options]
        .map(str::to_owned)
        .to_vec();
    let count = 5 + random.below(20);
    let requests: Vec<_> = (0..count).map(|_| Request::new(random, chain)).collect();
    for request in &requests {
        words.extend(["-c".into(), request.command()]);
    }
    let mut was_told = false;
    let programs = [Program::Qemu, Program::Ringback];
    let mut leaks = Vec::new();
    for (program, directory) in programs.into_iter().zip(pair.directories()) {
        let context = |error: String| format!("{program:?}: {error}\n{words:?}");
        let before = content(&directory, chain)?;
        let finished = shell(program, &directory, &words);
        let lines = said(&finished);
        if finished.status.code().is_none() || finished.stderr.contains("panicked") {
            return Err(context(format!("{finished:#?}")));
        }
        let answers: Vec<_> = lines.iter().filter_map(|line| answer(line)).collect();
        was_told |= answers.contains(&false);
        // It may be refused to open the image.
        let mut model: Model = before.into_iter().map(Some).collect();
        if answers.len() == requests.len() {
            for (request, succeeded) in requests.iter().zip(&answers) {
                request.learn(&mut model, *succeeded);
            }
        } else if !answers.is_empty() {
            return Err(context(format!("{} answers in {lines:#?}", answers.len())));
        }
        let checked = check(&directory);
        match checked.status.code() {
            Some(0) => {}
            Some(3) => leaks.push(program),
            // Reference counts were to be written later, and could not be.
            Some(2) if is_dirty(&directory) => {}
            _ => return Err(context(format!("{checked:#?} after {finished:#?}"))),
        }
        // What was not flushed may be lost when the last flush failed.
        let failed_late = lines.iter().any(|line| line.starts_with("qemu-io: "));
        if flushes || !failed_late && !answers.contains(&false) {
            let after = content(&directory, chain)?;
            let lost = model
                .iter()
                .zip(&after)
                .position(|(known, found)| known.is_some_and(|byte| byte != *found));
            if let Some(at) = lost {
                return Err(context(format!(
                    "byte {at} is {}, not {:?}, after {lines:#?}",
                    after[at], model[at]
                )));
            }
        }
    }
    match leaks[..] {
        // Clusters that cannot be given back are nothing that a guest is told of.
        [Program::Ringback] if !was_told && !options.contains("refblock") => {
            Err(format!("clusters leaked without an error\n{words:?}"))
        }
        _ => Ok(()),
    }
}

/// An image whose file answers some requests with errors.
fn options(random: &mut Random) -> String {
    let mut options = format!(
        "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename={TOP}"
    );
    for rule in 0..1 + random.below(3) {
        let event = EVENTS[random.index(EVENTS.len())];
        let errno = [5, 28][random.index(2)];
        let once = ["on", "off"][random.index(2)];
        let key = format!("file.inject-error.{rule}");
        let _ = write!(
            options,
            ",{key}.event={event},{key}.errno={errno},{key}.once={once}"
        );
        if random.below(2) == 0 {
            let iotype = ["write", "read", "flush"][random.index(3)];
            let _ = write!(options, ",{key}.iotype={iotype}");
        }
        // Some of them wait until there has been something to lose.
        if random.below(2) == 0 {
            let state = 2 + rule;
            let set = format!("file.set-state.{rule}");
            let _ = write!(
                options,
                ",{key}.state={state},{set}.event=write_aio,{set}.state={},{set}.new_state={state}",
                1 + rule
            );
        }
    }
    options
}

/// Whether a line answers a request, and how.
fn answer(line: &str) -> Option<bool> {
    if line.ends_with("TIME") {
        return Some(true);
    }
    let failed = ["read failed: ", "write failed: ", "discard failed: "];
    failed
        .iter()
        .any(|start| line.starts_with(start))
        .then_some(false)
}

/// Whether the image says that its reference counts may be wrong.
fn is_dirty(directory: &std::path::Path) -> bool {
    let header = ringback_tests::image::content(&directory.join(TOP));
    header[79] & 1 != 0
}

/// All bytes, as QEMU reads them.
fn content(directory: &std::path::Path, chain: &Chain) -> Result<Vec<u8>, String> {
    let mut convert = super::chain::qemu(directory, "qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw", TOP, "raw"]);
    let finished = ringback_tests::process::run(&mut convert);
    if !finished.status.success() {
        return Err(format!("{finished:#?}"));
    }
    let bytes = std::fs::read(directory.join("raw")).map_err(|error| error.to_string())?;
    if bytes.len() as u64 == chain.size {
        Ok(bytes)
    } else {
        Err(format!("{} bytes, not {}", bytes.len(), chain.size))
    }
}
