//! The same commands bring the same lines, the same bytes, and images without
//! faults.

use std::path::Path;

use ringback_ring::sim::Random;
use ringback_tests::scratch::Scratch;

use super::chain::{Chain, TOP, qemu};
use super::commands::Commands;
use super::each_seed;
use super::pair::{Pair, Program, is_sound, said, shell};

/// Processes that work one after the other on an image.
const PROCESSES: u64 = 2;

#[test]
fn random_commands_do_the_same_as_in_qemu_io() {
    let can_truncate = can_truncate();
    each_seed(50, |seed| {
        let mut random = Random::new(seed);
        let chain = Chain::new(&mut random);
        session(&chain, &mut random, can_truncate).map_err(|error| format!("{chain:?}: {error}"))
    });
}

/// Whether qcow2 images can be given another size.
fn can_truncate() -> bool {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let mut create = qemu(scratch.path(), "qemu-img");
    let made = create
        .args(["create", "-q", "-f", "qcow2", TOP, "64k"])
        .status();
    let words = ["-c", "truncate 128k", TOP].map(str::to_owned);
    made.is_ok_and(|status| status.success())
        && shell(Program::Ringback, scratch.path(), &words)
            .status
            .success()
}

fn session(chain: &Chain, random: &mut Random, can_truncate: bool) -> Result<(), String> {
    let pair = Pair::new(chain, random);
    let mut size = chain.size;
    for process in 0..PROCESSES {
        let mut words = options(random);
        let mut commands = Commands {
            packed: random.below(8),
            random,
            size,
            cluster: chain.cluster,
            can_truncate,
        };
        let count = 5 + commands.random.below(25);
        let list = commands.list(count);
        size = commands.size;
        for command in list {
            words.extend(["-c".into(), command]);
        }
        words.push(TOP.into());
        // The second time each works on what the other made.
        let [mut theirs, mut ours] = pair.directories();
        if process % 2 == 1 {
            std::mem::swap(&mut theirs, &mut ours);
        }
        let context = |error| format!("process {process}: {error}\n{}", told(&words));
        let seen = both(&theirs, &ours, &words);
        if seen == Ok(Ended::QemuCrashed) {
            println!("QEMU crashed: {}", told(&words));
            return Ok(());
        }
        is_sound(&ours).map_err(context)?;
        if let Err(error) = is_sound(&theirs) {
            // The image was sound before. QEMU is known to free compressed
            // clusters once too often.
            println!("QEMU: {}", context(error));
            return Ok(());
        }
        seen.and_then(|_| pair.compare()).map_err(context)?;
    }
    let [theirs, ours] = pair.directories();
    both(&ours, &theirs, &look(random, size)).map(drop)
}

/// The command line in a form that can be run.
fn told(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    words.join(" ")
}

fn options(random: &mut Random) -> Vec<String> {
    let mut options = vec!["-f", "qcow2"];
    options.extend(match random.below(6) {
        0 => vec!["-t", "none"],
        1 => vec!["-t", "writethrough"],
        2 => vec!["-t", "unsafe"],
        3 => vec!["-t", "directsync"],
        _ => vec!["-t", "writeback"],
    });
    if random.below(6) == 0 {
        options.extend(["-d", "ignore"]);
    }
    if random.below(8) == 0 {
        options.push("-C");
    }
    if random.below(8) == 0 {
        options.push("-m");
    }
    options.into_iter().map(str::to_owned).collect()
}

/// Places all over the image.
fn look(random: &mut Random, size: u64) -> Vec<String> {
    let mut words = ["-r", "-f", "qcow2", TOP].map(str::to_owned).to_vec();
    for part in 0..12 {
        let from = size * part / 12;
        let offset = from + random.below(size / 12 + 1);
        let len = (size - offset.min(size)).min(3000);
        words.extend(["-c".into(), format!("read -v {offset} {len}")]);
    }
    words
}

/// How two programs ended that agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Alike,
    /// By a signal: some requests of copy-on-read fail an assertion of QEMU's.
    QemuCrashed,
}

/// QEMU and ringback with the same words, each in a directory.
fn both(theirs: &Path, ours: &Path, words: &[String]) -> Result<Ended, String> {
    let qemu = shell(Program::Qemu, theirs, words);
    let own = shell(Program::Ringback, ours, words);
    if qemu.status.code().is_none() && own.status.code().is_some() {
        return Ok(Ended::QemuCrashed);
    }
    let (left, right) = (said(&qemu), said(&own));
    if let Some(at) = (0..left.len().max(right.len())).find(|&at| left.get(at) != right.get(at)) {
        let (left, right) = (left.get(at), right.get(at));
        return Err(format!("line {at}: QEMU {left:?}, ringback {right:?}"));
    }
    if qemu.status.code() != own.status.code() {
        return Err(format!("{:?}, ringback {:?}", qemu.status, own.status));
    }
    Ok(Ended::Alike)
}
