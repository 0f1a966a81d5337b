//! `--help` and `--version`.

/// The line of `--version`.
pub(super) fn version(program: &str) -> String {
    format!("{program} {}\n", env!("CARGO_PKG_VERSION"))
}

/// How to use the program.
pub(super) fn usage(program: &str) -> String {
    format!(
        "Usage: {program} [OPTIONS]...
Makes disks available, controlled by QMP as qemu-storage-daemon is

What is made, in the order of the options:
  --blockdev DEF         a node, such as file,node-name=f,filename=disk.img
  --chardev DEF          where a monitor speaks, such as
                         socket,id=c,path=qmp.sock,server=on,wait=off
  --monitor DEF          a QMP monitor: chardev=ID[,pretty=on]
  --object DEF           a throttle group, secret, credentials, iothread;
                         --object help lists them
  --nbd-server DEF       an NBD server: addr.type=unix,addr.path=PATH or
                         addr.type=inet,addr.host=HOST,addr.port=PORT
  --export DEF           an export: nbd,id=ID,node-name=NODE[,writable=on] or
                         vhost-user-blk,id=ID,node-name=NODE,addr.type=unix,
                         addr.path=PATH
  --drive DEF            a disk with its image, as QEMU's -drive
  --device DEF           what a guest sees, as QEMU's -device
  --metrics ADDRESS      latencies for Prometheus, at http://ADDRESS/metrics;
                         ADDRESS is HOST:PORT or unix:PATH

The process:
  --pidfile FILE         write the process's number to a file
  --daemonize            go into the background when everything is made
  --shards N             how many threads do the work
  --poll US              microseconds that a thread at most looks for work before
                         it sleeps, as long as that pays; 0 for never
  -T, --trace PATTERN    trace events
  -v                     tell more; may be repeated
  -h, --help             this text
  -V, --version          the version
"
    )
}
