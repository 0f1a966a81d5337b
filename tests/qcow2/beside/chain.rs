//! A random chain of images, made by QEMU's programs.

use std::path::Path;
use std::process::Command;

use ringback_ring::sim::Random;
use ringback_tests::process::run;

/// The image at the top. Below it lie `base` and `root`, beside it `data`.
pub(crate) const TOP: &str = "disk";

/// What an image of a chain is like.
#[derive(Clone, Debug)]
struct Layer {
    name: &'static str,
    format: &'static str,
    size: u64,
    options: Vec<String>,
}

/// A chain as it is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// Bytes of the top image.
    pub(crate) size: u64,
    /// Bytes of its clusters.
    pub(crate) cluster: u64,
    /// Its data lies in another file.
    pub(crate) has_data_file: bool,
    /// From the top image down.
    layers: Vec<Layer>,
}

impl Chain {
    pub(crate) fn new(random: &mut Random) -> Self {
        let cluster_bits = [9, 10, 12, 14, 16, 16, 16, 18, 21][random.index(9)];
        let size = size(random, 1 << cluster_bits);
        let mut options = options(random, cluster_bits);
        let has_data_file = options
            .iter()
            .any(|option| option.starts_with("data_file="));
        let is_raw = options.iter().any(|option| option == "data_file_raw=on");
        let mut layers = Vec::new();
        let mut below = size;
        let mut depth = if is_raw {
            0
        } else {
            [0, 1, 1, 2][random.index(4)]
        };
        if depth == 0 && random.below(5) == 0 {
            options.push("preallocation=metadata".into());
        }
        layers.push(Layer {
            name: TOP,
            format: "qcow2",
            size,
            options,
        });
        for name in ["base", "root"] {
            if depth == 0 {
                break;
            }
            depth -= 1;
            below = match random.below(3) {
                0 => below,
                _ => (1 + random.below(below / 512 * 3 / 2)) * 512,
            };
            let is_last = depth == 0;
            let format = if is_last && random.below(2) == 0 {
                "raw"
            } else {
                "qcow2"
            };
            let options = match format {
                "raw" => Vec::new(),
                _ => {
                    let bits = [9, 12, 16, 16][random.index(4)];
                    let mut options = options_below(random, bits);
                    options.insert(0, format!("cluster_size={}", 1_u64 << bits));
                    options
                }
            };
            layers.push(Layer {
                name,
                format,
                size: below,
                options,
            });
        }
        Self {
            size,
            cluster: 1 << cluster_bits,
            has_data_file,
            layers,
        }
    }

    /// Names of all files.
    pub(crate) fn files(&self) -> Vec<&'static str> {
        let mut files: Vec<_> = self.layers.iter().map(|layer| layer.name).collect();
        if self.has_data_file {
            files.push("data");
        }
        files
    }

    /// Makes the files and puts something into them.
    pub(crate) fn make(&self, directory: &Path, random: &mut Random) {
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let mut create = qemu(directory, "qemu-img");
            create.args(["create", "-q", "-f", layer.format]);
            if !layer.options.is_empty() {
                create.args(["-o", &layer.options.join(",")]);
            }
            if let Some(below) = self.layers.get(index + 1) {
                create.args(["-b", below.name, "-F", below.format]);
            }
            run(create.args([layer.name, &layer.size.to_string()])).succeeded();
            if index > 0 || random.below(2) == 0 {
                fill(directory, layer, random);
            }
        }
    }
}

/// A program with its own place to work.
pub(crate) fn qemu(directory: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory);
    command
}

/// From a few sectors to some MiB, more often than not no whole clusters.
fn size(random: &mut Random, cluster: u64) -> u64 {
    let clusters = match random.below(4) {
        0 => 1 + random.below(3),
        _ => 1 + random.below(60),
    };
    let bytes = (clusters * cluster).clamp(1024, 12 << 20);
    match random.below(3) {
        0 => bytes,
        _ => (1 + random.below(bytes / 512)) * 512,
    }
}

fn options(random: &mut Random, cluster_bits: u32) -> Vec<String> {
    let mut options = options_below(random, cluster_bits);
    let is_old = options.iter().any(|option| option == "compat=0.10");
    options.insert(0, format!("cluster_size={}", 1_u64 << cluster_bits));
    if !is_old && random.below(6) == 0 {
        options.push("data_file=data".into());
        if random.below(2) == 0 {
            options.push("data_file_raw=on".into());
        }
    }
    options
}

fn options_below(random: &mut Random, cluster_bits: u32) -> Vec<String> {
    if random.below(6) == 0 {
        return vec!["compat=0.10".into()];
    }
    let bits = [1, 2, 4, 8, 16, 16, 32, 64][random.index(8)];
    let mut options = vec![format!("refcount_bits={bits}")];
    if cluster_bits >= 14 && random.below(3) == 0 {
        options.push("extended_l2=on".into());
    }
    if random.below(4) == 0 {
        options.push("lazy_refcounts=on".into());
    }
    if random.below(3) == 0 {
        options.push("compression_type=zstd".into());
    }
    options
}

fn fill(directory: &Path, layer: &Layer, random: &mut Random) {
    let mut words = Vec::new();
    for _ in 0..random.below(6) {
        let offset = random.below(layer.size);
        let len = 1 + random.below(layer.size - offset);
        let command = match random.below(4) {
            0 => format!("write -z {offset} {len}"),
            _ => format!("write -P {} {offset} {len}", 1 + random.below(255)),
        };
        words.extend(["-c".to_owned(), command]);
    }
    words.extend(["-c".into(), "flush".into()]);
    let mut fill = qemu(directory, "qemu-io");
    fill.args(["-f", layer.format, "-t", "unsafe"]);
    run(fill.args(words).arg(layer.name)).succeeded();
}
