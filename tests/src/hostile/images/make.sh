#!/bin/sh
# Makes the images of this directory anew, with QEMU's programs.
set -e
cd "$(dirname "$0")"

fill() {
    qemu-io -f qcow2 -c 'write -P 1 0 3k' -c 'write -P 2 20k 700' -c 'write -z 8k 4k' "$1"
    qemu-img snapshot -c one "$1"
    qemu-io -f qcow2 -c 'write -P 3 1k 2k' -c "write -c -P 4 $2 $3" "$1"
}

qemu-img create -q -f qcow2 -o cluster_size=512,compat=0.10 old.qcow2 40k
fill old.qcow2 10k 1k
qemu-img create -q -f qcow2 -o cluster_size=512,compression_type=zstd full.qcow2 40k
fill full.qcow2 10k 1k
qemu-img bitmap --add -g 512 full.qcow2 first
qemu-img bitmap --add -g 4096 --disable full.qcow2 second
qemu-io -f qcow2 -c 'write -P 5 30k 1k' full.qcow2
qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on extended.qcow2 200k
qemu-io -f qcow2 -c 'write -P 1 0 3k' -c 'write -z 40k 4k' -c 'write -c -P 4 64k 16k' extended.qcow2
