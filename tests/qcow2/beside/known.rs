//! What random commands have found, one by one.

use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use ringback_tests::scratch::Scratch;

use super::chain::{TOP, qemu};
use super::pair::{Program, is_sound, said, shell};

/// Makes an image for each program and gives both the same commands.
#[track_caller]
fn agree(create: &str, size: &str, options: &[&str], commands: &[&str]) {
    if !needs(&[Need::Program("qemu-img"), Need::Program("qemu-io")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let mut words: Vec<String> = options.iter().map(|&word| word.to_owned()).collect();
    for &command in commands {
        words.extend(["-c".into(), command.into()]);
    }
    words.push(TOP.into());
    let seen = [Program::Qemu, Program::Ringback].map(|program| {
        let directory = scratch.directory(&format!("{program:?}"));
        let mut image = qemu(&directory, "qemu-img");
        image.args(["create", "-q", "-f", "qcow2", "-o", create, TOP, size]);
        run(&mut image).succeeded();
        let finished = shell(program, &directory, &words);
        is_sound(&directory).expect("an image without faults");
        (said(&finished), finished.status.code())
    });
    let [theirs, ours] = seen;
    assert_eq!(theirs, ours, "QEMU, ringback");
}

#[test]
fn compressed_writes_pass_copy_on_read() {
    agree(
        "cluster_size=64k",
        "256k",
        &["-C"],
        &["write -c -P 3 64k 64k", "read -P 3 64k 64k"],
    );
}

#[test]
fn a_taken_cluster_does_not_hold_up_the_others() {
    agree(
        "cluster_size=64k",
        "256k",
        &[],
        &[
            "write -P 1 64k 64k",
            "write -c -P 3 0 192k",
            "read -P 3 0 64k",
            "read -P 1 64k 64k",
            "read -P 3 128k 64k",
        ],
    );
}

#[test]
fn the_end_of_the_disk_ends_a_cluster_of_subclusters() {
    agree(
        "cluster_size=64k,extended_l2=on",
        "53248",
        &[],
        &[
            "write -P 3 0 53248",
            "write -z -u 0 53248",
            "write -c -P 3 0 53248",
            "read -P 3 0 53248",
        ],
    );
}

#[test]
fn unless_it_cuts_a_subcluster() {
    agree(
        "cluster_size=64k,extended_l2=on",
        "53760",
        &[],
        &[
            "write -P 3 0 53760",
            "write -z -u 0 53760",
            "write -c -P 3 0 53760",
            "read -P 3 0 53760",
        ],
    );
}

#[test]
fn zeroes_in_an_old_image_take_no_cluster() {
    agree(
        "cluster_size=4k,compat=0.10",
        "16k",
        &[],
        &[
            "write -z 0 2048",
            "write -c -P 2 0 4096",
            "read -P 2 0 4096",
        ],
    );
}

#[test]
fn nothing_at_all_is_not_compressed_either_into_a_data_file() {
    agree(
        "data_file=data",
        "64k",
        &[],
        &["write -c 0 0", "write -c 0 64k", "write -P 1 0 64k"],
    );
    agree("cluster_size=64k", "100k", &[], &["write -c 100k 0"]);
}
