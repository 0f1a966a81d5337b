//! From the command line to a process that serves.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use ringback_qmp_shim::command_line::chardev::Side;
use ringback_qmp_shim::command_line::{
    self, Backend, Chardev, CommandLine, InetAddress, Opt, Placed, Request, SocketAddress,
};
use ringback_ring::shards::Config;
use ringback_ring::{Shard, Shards, probe};

use super::chardev::{self, Place, Spec};
use super::control::Control;
use super::inbox::{Address, CONTROL_SHARD, Message};
use super::pid_file::PidFile;

/// The name which others know.
const NAME: &str = "qemu-storage-daemon";
/// Tells a process that it is the one which stays: see [`daemonize`].
const BACKGROUND: &str = "RINGBACK_IN_BACKGROUND";
/// What it says when it serves.
const READY: &[u8] = b"ready";

/// Runs the daemon if the program was called for it: under the name
/// `qemu-storage-daemon`, or as `ringback daemon`.
pub(crate) fn run_if_called(mut words: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let called = words.next()?;
    let program = if Path::new(&called).file_name() == Some(OsStr::new(NAME)) {
        called.to_string_lossy().into_owned()
    } else if words.next()? == "daemon" {
        "ringback daemon".to_owned()
    } else {
        return None;
    };
    Some(run_words(&program, words.collect()))
}

/// The same with the words behind `ringback daemon`.
pub(crate) fn run(words: Vec<OsString>) -> ExitCode {
    run_words("ringback daemon", words)
}

fn run_words(program: &str, words: Vec<OsString>) -> ExitCode {
    let words: Vec<String> = match words.into_iter().map(OsString::into_string).collect() {
        Ok(words) => words,
        Err(word) => {
            let word: OsString = word;
            eprintln!("{program}: '{}' is not UTF-8", word.display());
            return ExitCode::FAILURE;
        }
    };
    let answer = command_line::parse(program, &words);
    for warning in &answer.warnings {
        eprintln!("{warning}");
    }
    match answer.request {
        Ok(Request::Show(text)) => {
            // Nobody may be listening.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if wants_more_than_version(&words) {
                match probe::probe() {
                    Ok(report) => println!("{report}"),
                    Err(error) => {
                        eprintln!("{program}: {error}");
                        return ExitCode::FAILURE;
                    }
                }
            }
            ExitCode::SUCCESS
        }
        Ok(Request::Run(line)) => {
            let result = if line.daemonize && std::env::var_os(BACKGROUND).is_none() {
                daemonize()
            } else {
                serve(program, &line)
            };
            result.unwrap_or_else(|complaint| {
                eprintln!("{complaint}");
                ExitCode::FAILURE
            })
        }
        Err(complaint) => {
            eprintln!("{complaint}");
            ExitCode::FAILURE
        }
    }
}

/// `--version -v` also shows what the kernel offers.
fn wants_more_than_version(words: &[String]) -> bool {
    let has = |wanted: [&str; 2]| words.iter().any(|word| wanted.contains(&word.as_str()));
    has(["-V", "--version"]) && has(["-v", "--verbose"])
}

/// Starts the same program once more and waits until it serves. A process with
/// threads cannot be split, and before there are threads nothing is known yet.
fn daemonize() -> Result<ExitCode, String> {
    let fail = |error: std::io::Error| format!("cannot go into the background: {error}");
    let program = std::env::current_exe().map_err(fail)?;
    let mut words = std::env::args_os();
    let name = words.next();
    let mut command = std::process::Command::new(program);
    command
        .args(words)
        .env(BACKGROUND, "1")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    if let Some(name) = name {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    let mut child = command.spawn().map_err(fail)?;
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).map_err(fail)?;
    }
    if said.ends_with(READY) {
        return Ok(ExitCode::SUCCESS);
    }
    // What went wrong it has said itself.
    let _ = child.wait();
    Ok(ExitCode::FAILURE)
}

/// The other side of [`daemonize`]: whoever waits may go, and nobody is listened
/// to or told anything from now on.
fn leave_terminal() -> Result<(), String> {
    let fail = |error: std::io::Error| error.to_string();
    nix::unistd::setsid().map_err(|error| error.to_string())?;
    std::env::set_current_dir("/").map_err(fail)?;
    let null = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(fail)?;
    std::io::stdout().write_all(READY).map_err(fail)?;
    std::io::stdout().flush().map_err(fail)?;
    nix::unistd::dup2_stdout(&null).map_err(|error| error.to_string())?;
    nix::unistd::dup2_stderr(&null).map_err(|error| error.to_string())?;
    Ok(())
}

fn serve(program: &str, line: &CommandLine) -> Result<ExitCode, String> {
    log(line.verbosity);
    let devices = look_at(program, line)?;
    let signals = ending_signals();
    // Before the first thread, so that all of them leave signals alone.
    signals
        .thread_block()
        .map_err(|error| format!("{program}: {error}"))?;
    let mut config = Config::default();
    if let Some(count) = line.shards {
        config.count = count.get().into();
    }
    if let Some(poll) = line.poll {
        config.poll_ns = u64::try_from(poll.as_nanos()).expect("at most a second");
    }
    let shards = Shards::start(&config).map_err(|error| format!("{program}: {error}"))?;
    let address = Address::new(&shards);
    let started = start(program, line, &shards, &address);
    let result = match started {
        Ok(running) => {
            let pid_file = match &line.pidfile {
                Some(path) => PidFile::make(path).map(Some),
                None => Ok(None),
            };
            match pid_file {
                Ok(pid_file) => {
                    wait_for_signals(&signals, &address);
                    let ended = open_chardevs(program, &devices, &address)
                        // Whoever waits for the daemon finds its sockets, and paths
                        // are meant from where it was started.
                        .and_then(|()| match line.daemonize {
                            true => leave_terminal().map_err(|error| format!("{program}: {error}")),
                            false => Ok(()),
                        });
                    match &ended {
                        Ok(()) => running.serve(&shards),
                        Err(_) => running.abandon(&shards),
                    }
                    // If they could not be made they are somebody else's.
                    for path in sockets(&devices).filter(|_| ended.is_ok()) {
                        // Somebody may have removed it.
                        let _ = std::fs::remove_file(path);
                    }
                    drop(pid_file);
                    ended
                }
                Err(error) => {
                    running.abandon(&shards);
                    Err(format!("{program}: cannot create PID file: {error}"))
                }
            }
        }
        Err(complaint) => Err(complaint),
    };
    shards.stop();
    result.map(|()| ExitCode::SUCCESS)
}

/// Everything is made, nobody is served yet.
struct Made;

impl Made {
    fn serve(self, shards: &Shards) {
        let ended = shards.spawn_on(CONTROL_SHARD, |shard: Shard| async move {
            if let Some(control) = shard.local::<Parked>().take() {
                control.run().await;
            }
        });
        // The shard was stopped: nothing is left to do.
        let _ = ended.wait();
    }

    fn abandon(self, shards: &Shards) {
        let ended = shards.spawn_on(CONTROL_SHARD, |shard: Shard| async move {
            if let Some(mut control) = shard.local::<Parked>().take() {
                control.stop_metrics().await;
                control.close_all_nodes().await;
            }
        });
        let _ = ended.wait();
    }
}

/// The control of a process that is not served yet, on its shard.
#[derive(Default)]
struct Parked(std::cell::RefCell<Option<Box<Control>>>);

impl Parked {
    fn take(&self) -> Option<Box<Control>> {
        self.0.borrow_mut().take()
    }
}

fn start(
    program: &str,
    line: &CommandLine,
    shards: &Shards,
    address: &Address,
) -> Result<Made, String> {
    let (program, options) = (program.to_owned(), line.options.clone());
    let address = address.clone();
    let made = shards.spawn_on(CONTROL_SHARD, move |shard: Shard| async move {
        let mut control = Box::new(Control::new(&shard, address));
        for placed in &options {
            if let Err(error) = make(&mut control, placed).await {
                control.stop_metrics().await;
                control.close_all_nodes().await;
                return Err(placed.complain(&program, &error));
            }
        }
        *shard.local::<Parked>().0.borrow_mut() = Some(control);
        Ok(())
    });
    made.wait().map_err(|gone| gone.to_string())??;
    Ok(Made)
}

/// What one option asks for. Character devices come last of all: whoever connects
/// finds everything in place.
async fn make(control: &mut Control, placed: &Placed) -> Result<(), String> {
    let made = match &placed.option {
        Opt::Blockdev(options) => control.blockdev_add(options).await.map(drop),
        Opt::Chardev(device) => {
            control.add_chardev(&device.id);
            Ok(())
        }
        Opt::Monitor(monitor) => {
            monitor.check_mode().map_err(|error| error.to_string())?;
            return control.add_monitor(&monitor.chardev, monitor.pretty);
        }
        Opt::Object(object) => control.add_object(object).await,
        Opt::NbdServer(server) => control.start_nbd_server(server).await,
        Opt::Export(export) => control.add_export(export).await,
        Opt::Drive(drive) => control.add_drive(drive).await,
        Opt::Device(device) => control.add_device(device).await,
        Opt::Metrics(address) => control.serve_metrics(address).await,
    };
    made.map_err(|error| error.desc)
}

/// What can be said of the options before anything is made, and what their
/// character devices are.
fn look_at(program: &str, line: &CommandLine) -> Result<Vec<(Placed, Spec)>, String> {
    let mut devices = Vec::new();
    for placed in &line.options {
        let complain = |error: String| placed.complain(program, &error);
        if let Opt::Chardev(device) = &placed.option {
            let spec = spec_of(device, line.daemonize).map_err(complain)?;
            devices.push((placed.clone(), spec));
        }
    }
    Ok(devices)
}

fn open_chardevs(
    program: &str,
    devices: &[(Placed, Spec)],
    address: &Address,
) -> Result<(), String> {
    for (placed, spec) in devices {
        chardev::start(spec.clone(), address).map_err(|error| placed.complain(program, &error))?;
    }
    Ok(())
}

fn spec_of(device: &Chardev, is_background: bool) -> Result<Spec, String> {
    let (place, side) = match &device.backend {
        Backend::Null => (Place::Null, None),
        Backend::Stdio { signal: false } => {
            return Err("signal=off is not supported".into());
        }
        Backend::Stdio { .. } if is_background => {
            return Err("cannot use stdio with -daemonize".into());
        }
        Backend::Stdio { signal: true } => (Place::Standard, None),
        Backend::Socket(socket) => {
            let place = match &socket.address {
                SocketAddress::Unix(unix) if unix.is_abstract => {
                    return Err("abstract sockets are not supported; give a path".into());
                }
                SocketAddress::Unix(unix) => {
                    // The process may go elsewhere before it connects once more.
                    let path = std::path::absolute(&unix.path);
                    Place::Unix(path.map_err(|error| error.to_string())?)
                }
                SocketAddress::Inet(inet) => {
                    refuse_unsupported(inet)?;
                    let port = inet.port.parse().map_err(|_| {
                        format!(
                            "address resolution failed for {}:{}: Servname not supported for \
                             ai_socktype",
                            inet.host, inet.port
                        )
                    })?;
                    let host = match inet.host.as_str() {
                        "" => "0.0.0.0",
                        host => host,
                    };
                    Place::Tcp(host.to_owned(), port, socket.no_delay)
                }
                SocketAddress::Fd(number) => {
                    let number = number
                        .parse()
                        .map_err(|_| format!("Invalid file descriptor '{number}'"))?;
                    Place::Descriptor(number)
                }
            };
            (place, Some(socket.side))
        }
        Backend::File { .. } | Backend::Pipe { .. } => {
            return Err("only sockets, stdio and null are supported here".into());
        }
    };
    Ok(Spec {
        id: device.id.clone(),
        place,
        is_server: matches!(side, Some(Side::Server { .. })),
        waits: matches!(side, Some(Side::Server { wait: true })),
        reconnect_ms: match side {
            Some(Side::Client { reconnect_ms }) => reconnect_ms,
            _ => 0,
        },
    })
}

/// Where clients come in.
fn sockets(devices: &[(Placed, Spec)]) -> impl Iterator<Item = &Path> {
    devices.iter().filter_map(|(_, spec)| match &spec.place {
        Place::Unix(path) if spec.is_server => Some(path.as_path()),
        _ => None,
    })
}

fn refuse_unsupported(inet: &InetAddress) -> Result<(), String> {
    let unsupported = [
        ("to", inet.to.is_some()),
        ("ipv4", inet.ipv4.is_some()),
        ("ipv6", inet.ipv6.is_some()),
        ("keep-alive", inet.keep_alive),
        ("numeric", inet.numeric),
    ];
    match unsupported.iter().find(|(_, asked)| *asked) {
        Some((option, _)) => Err(format!("option '{option}' is not supported here")),
        None => Ok(()),
    }
}

fn log(verbosity: usize) {
    let level = match verbosity {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false)
        .without_time()
        .init();
}

fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
}

fn wait_for_signals(signals: &SigSet, address: &Address) {
    let (signals, address) = (*signals, address.clone());
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            address.send(Message::Quit);
        }
    });
}
