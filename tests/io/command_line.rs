//! The words behind the program's name.

use crate::beside::{Beside, alone};

#[test]
fn options() {
    let Some(beside) = Beside::new() else { return };
    for line in [
        "--foo",
        "--fo",
        "--c",
        "--n x",
        "-z",
        "-c",
        "--cmd",
        "-f",
        "--read-only=1",
        "a b",
        "--im -f raw a.img",
        "--im -f raw",
        "a.img -f raw -c length",
        "-f raw a.img --cmd=length",
        "-f raw --cm length -- a.img",
        "-fraw -rc length a.img",
        "-f raw -t none a.img -c length",
        "-f raw -t off a.img -c length",
        "-f raw -t directsync a.img -c length",
        "-f raw -t writeback a.img -c length",
        "-f raw -t writethrough a.img -c length",
        "-f raw -t unsafe a.img -c length",
        "-t bogus",
        "-d bogus -t bogus",
        "-d off -f raw a.img -c length",
        "-d unmap -f raw a.img -c length",
        "-i threads -f raw a.img -c length",
        "-i io_uring -f raw a.img -c length",
        "-i bogus",
        "-k -f raw a.img",
        "-i native -f raw a.img -c length",
        "-k -i threads -f raw a.img -c length",
        "-n -k -f raw a.img -c length",
        "-n -m -f raw a.img -c length",
        "-U a.img",
        "-r -C a.img",
        "-C -f raw a.img -c length",
        "-r a.img -c length",
        "a.img -c length",
        "-T bogus -c quit",
        "--object foo",
        "-f bogus a.img",
        "nothing",
        "-f raw nothing -c length",
        "-f raw .",
        "-f raw file:a.img -c length",
        "-f raw ./a.img -c length",
        "foo:bar",
        "-U --image-opts driver=file,filename=a.img,force-share=off",
        "--image-opts -r driver=raw,file.filename=a.img,read-only=off -c length",
        "-c length -c foo",
        "-c quit -c foo",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        beside.agree_on(&words, "");
    }
}

#[test]
fn help_and_version_end_the_program_at_once() {
    let Some(beside) = Beside::new() else { return };
    beside.agree_on(&["-h", "--foo"], "");
    beside.agree_on(&["-r", "--help", "a", "b"], "");
    let version = alone(&beside.own_directory(), &["--foo", "-V"], "");
    version.failed_with(1);
    let version = alone(&beside.own_directory(), &["-V", "--foo"], "").succeeded();
    assert!(version.stdout.starts_with("qemu-io version 10.0"));
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let Some(beside) = Beside::new() else { return };
    for (line, text) in [
        ("-f vmdk a.img", "Driver 'vmdk' is not supported"),
        ("http://localhost/a", "Unknown protocol 'http'"),
        ("--object secret,id=s", "'secret' are not supported"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let finished = alone(&beside.own_directory(), &words, "");
        finished.failed_with(1).saying(text);
    }
}
