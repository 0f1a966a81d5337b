//! The client library that QEMU's project gives away, `qemu.qmp` for Python.

use std::process::Command;

use ringback_tests::image::content;
use ringback_tests::needs::{Need, needs, python_with};
use ringback_tests::process::{Running, wait_for};
use ringback_tests::qmp::Program;
use ringback_tests::scratch::Scratch;

use crate::beside::disks;

/// Waits for the daemon, makes a backup and ends it.
const CLIENT: &str = r#"
import asyncio
from qemu.qmp import EventListener, ExecuteError, QMPClient


async def main():
    qmp = QMPClient("test")
    await qmp.start_server("qmp.sock")
    print("listening", flush=True)
    await qmp.accept()
    assert "qemu" in qmp.greeting.QMP.version, qmp.greeting
    for node, name in (("src", "disk"), ("dst", "blank")):
        await qmp.execute(
            "blockdev-add",
            {"driver": "file", "node-name": node, "filename": name},
        )
    try:
        await qmp.execute("blockdev-del", {"node-name": "zz"})
    except ExecuteError as error:
        assert error.error.error.class_ == "GenericError", error
        assert str(error) == "Failed to find node with node-name='zz'", error
    else:
        raise AssertionError("not refused")
    listener = EventListener()
    with qmp.listen(listener):
        await qmp.execute(
            "blockdev-backup",
            {"job-id": "j", "device": "src", "target": "dst", "sync": "full"},
        )
        states = []
        async for event in listener:
            if event["event"] == "BLOCK_JOB_COMPLETED":
                assert "error" not in event["data"], event
            if event["event"] == "JOB_STATUS_CHANGE":
                states.append(event["data"]["status"])
                if states[-1] == "null":
                    break
    assert states[0] == "created" and states[-2] == "concluded", states
    await qmp.execute("quit")
    try:
        await qmp.disconnect()
    except EOFError:
        # The daemon may hang up first.
        pass


asyncio.run(main())
print("done")
"#;

#[test]
fn a_backup() {
    if !needs(&[Need::PythonModule("qemu.qmp")]) {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    disks(scratch.path());
    let mut daemon = Program::Ringback.command();
    daemon.current_dir(scratch.path());
    daemon.args([
        "--chardev",
        "socket,id=c,path=qmp.sock,server=off,reconnect-ms=20",
        "--monitor",
        "chardev=c",
    ]);
    let python = python_with("qemu.qmp").expect("looked for before");
    let mut client = Command::new(python);
    client.current_dir(scratch.path()).args(["-c", CLIENT]);
    let client = Running::start(&mut client);
    wait_for("the client to listen", || scratch.join("qmp.sock").exists());
    let daemon = Running::start(&mut daemon);
    let client = client.finish().succeeded();
    assert!(client.stdout.ends_with("done\n"), "{client:#?}");
    daemon.finish().succeeded();
    assert!(content(&scratch.join("disk")) == content(&scratch.join("blank")));
}
