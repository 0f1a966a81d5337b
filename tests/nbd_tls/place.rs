//! A daemon that offers a disk under TLS, and directories of its clients.

use std::path::PathBuf;
use std::process::Command;

use ringback_tests::certificates::{Authority, HOST};
use ringback_tests::image::{MIB, blank, noise, write_at};
use ringback_tests::process::{Finished, run};
use ringback_tests::qmp::{Daemon, Program};
use ringback_tests::scratch::Scratch;

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 24 * MIB;

/// What every daemon here is told; more words come behind.
const WORDS: [&str; 4] = [
    "--blockdev",
    "file,node-name=disk,filename=disk.img",
    "--object",
    "tls-creds-x509,id=tls,dir=server,endpoint=server",
];
const EXPORT: [&str; 2] = ["--export", "nbd,id=e,node-name=disk,writable=on"];

pub(crate) struct Place {
    pub(crate) scratch: Scratch,
    pub(crate) authority: Authority,
}

impl Place {
    /// With a disk full of noise, the server's directory `server`, and that of a
    /// client `O=Acme,CN=alice` called `alice`.
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
        let authority = Authority::new("Test authority");
        let server = scratch.directory("server");
        authority.trusted_in(&server);
        authority.sign(&server, "server", "storage");
        let disk = scratch.join("disk.img");
        blank(&disk, SIZE);
        write_at(&disk, MIB, &noise(1, SIZE - 3 * MIB));
        let place = Self { scratch, authority };
        place.client("alice");
        place
    }

    /// A directory of a client with a certificate in this name.
    pub(crate) fn client(&self, name: &str) -> PathBuf {
        let directory = self.scratch.directory(name);
        self.authority.trusted_in(&directory);
        self.authority.sign(&directory, "client", name);
        directory
    }

    /// A daemon with further words before its server, whose options may be more.
    pub(crate) fn daemon(&self, words: &[&str], server: &str) -> Daemon {
        self.server(Program::Ringback, words, server)
    }

    /// The same with the daemon of either's.
    pub(crate) fn server(&self, program: Program, words: &[&str], server: &str) -> Daemon {
        let server = format!("addr.type=unix,addr.path=nbd.sock,tls-creds=tls{server}");
        let mut all = WORDS.to_vec();
        all.extend(words);
        all.extend(["--nbd-server", &server]);
        all.extend(EXPORT);
        Daemon::start(program, self.scratch.path(), &all)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.join("nbd.sock")
    }

    /// The export for libnbd's programs, as this client. On sockets of this kind
    /// they do not verify the server.
    pub(crate) fn uri(&self, client: &str) -> String {
        format!(
            "nbds+unix://{HOST}/disk?socket={}&tls-certificates={}",
            self.socket().display(),
            self.scratch.join(client).display()
        )
    }

    /// Asks for the size of the disk as this client.
    pub(crate) fn ask_size(&self, client: &str) -> Finished {
        run(Command::new("nbdinfo").args(["--size", &self.uri(client)]))
    }

    /// Compares the disk with a file through QEMU's client; `more` options for its
    /// credentials.
    pub(crate) fn compare(&self, file: &str, client: &str, more: &str) -> Finished {
        let credentials = format!("tls-creds-x509,id=t,dir={client},endpoint=client{more}");
        let remote = format!(
            "driver=nbd,server.type=unix,server.path=nbd.sock,export=disk,tls-creds=t,\
             tls-hostname={HOST}"
        );
        let local = format!("driver=raw,file.driver=file,file.filename={file}");
        let mut command = Command::new("qemu-img");
        command.current_dir(self.scratch.path());
        command.args(["compare", "--object", &credentials, "--image-opts"]);
        run(command.args([&remote, &local]))
    }
}
