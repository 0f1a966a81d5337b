"""What libnbd can do with an export, beyond what its programs do.

Arguments: the server's socket. The export `d` is 8 MiB, and has two bitmaps.
"""

import sys

import nbd

SOCKET = sys.argv[1]
CONTEXTS = [
    "base:allocation",
    "qemu:allocation-depth",
    "qemu:dirty-bitmap:b0",
    "qemu:dirty-bitmap:b1",
]
KIB = 1 << 10
MIB = 1 << 20


def connect(contexts=()):
    handle = nbd.NBD()
    handle.set_export_name("d")
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_unix(SOCKET)
    return handle


class Flight:
    """Requests in flight, and the order in which they end."""

    def __init__(self):
        self.ended = []

    def callback(self, name):
        def done(error):
            assert error.value == 0, (name, error.value)
            self.ended.append(name)
            return 1

        return done


def land(handles):
    while any(handle.aio_in_flight() for handle in handles):
        for handle in handles:
            if handle.aio_in_flight():
                handle.poll(10_000)


def pattern(number):
    return bytes([number % 251 + 1]) * (4 * KIB)


def many_at_once():
    """Each connection writes pieces of its own; each reads those of another."""
    handles = [connect() for _ in range(4)]
    assert handles[0].can_multi_conn()
    flight = Flight()
    places = [(n, handles[n % 4], n * 20 * KIB + n % 7 * 512) for n in range(400)]
    for n, handle, offset in places:
        buffer = nbd.Buffer.from_bytearray(bytearray(pattern(n)))
        handle.aio_pwrite(buffer, offset, flight.callback(n))
    land(handles)
    assert sorted(flight.ended) == list(range(400))
    for handle in handles:
        handle.flush()
    flight = Flight()
    buffers = []
    for n, _, offset in places:
        buffers.append(nbd.Buffer(4 * KIB))
        handles[(n + 1) % 4].aio_pread(buffers[-1], offset, flight.callback(n))
    land(handles)
    assert sorted(flight.ended) == list(range(400))
    for n, buffer in enumerate(buffers):
        assert buffer.to_bytearray() == pattern(n), n
    for handle in handles:
        handle.shutdown()


def out_of_order():
    """What is quick overtakes what is slow."""
    handle = connect()
    overtaken = 0
    for n in range(30):
        flight = Flight()
        data = nbd.Buffer.from_bytearray(bytearray([n + 1]) * MIB)
        handle.aio_pwrite(data, 0, flight.callback("slow"), flags=nbd.CMD_FLAG_FUA)
        handle.aio_pread(nbd.Buffer(512), 7 * MIB, flight.callback("quick"))
        land([handle])
        assert sorted(flight.ended) == ["quick", "slow"]
        overtaken += flight.ended[0] == "quick"
    assert overtaken > 0
    handle.shutdown()


def status():
    """Every context tells of all of the range, in extents that are not empty."""
    handle = connect(CONTEXTS)
    for context in CONTEXTS:
        assert handle.can_meta_context(context), context
    totals = dict.fromkeys(CONTEXTS, 0)

    def extents(context, offset, entries, error):
        assert (offset, error.value) == (MIB, 0)
        assert all(length > 0 for length in entries[::2])
        totals[context] += sum(entries[::2])

    handle.block_status(6 * MIB, MIB, extents)
    assert totals == dict.fromkeys(CONTEXTS, 6 * MIB), totals
    single = dict.fromkeys(CONTEXTS, 0)

    def first(context, offset, entries, error):
        single[context] += len(entries) // 2

    handle.block_status(6 * MIB, MIB, first, flags=nbd.CMD_FLAG_REQ_ONE)
    assert single == dict.fromkeys(CONTEXTS, 1), single
    handle.shutdown()


def flags():
    handle = connect()
    handle.pwrite(b"\x2a" * (256 * KIB), 2 * MIB, flags=nbd.CMD_FLAG_FUA)
    chunks = []

    def chunk(data, offset, kind, error):
        assert error.value == 0
        chunks.append((kind, offset, len(data)))

    whole = handle.pread_structured(MIB, 3 * MIB // 2, chunk, flags=nbd.CMD_FLAG_DF)
    assert chunks == [(nbd.READ_DATA, 3 * MIB // 2, MIB)], chunks
    assert whole[512 * KIB : 768 * KIB] == b"\x2a" * (256 * KIB)
    # The image knows zeroes, so these are fast.
    assert handle.can_fast_zero()
    handle.zero(64 * KIB, 2 * MIB, flags=nbd.CMD_FLAG_FAST_ZERO)
    handle.zero(64 * KIB, 2 * MIB + 64 * KIB, flags=nbd.CMD_FLAG_NO_HOLE)
    assert handle.pread(128 * KIB, 2 * MIB) == bytearray(128 * KIB)
    handle.trim(64 * KIB, 2 * MIB, flags=nbd.CMD_FLAG_FUA)
    handle.cache(MIB, 0)
    # What libnbd itself would not send.
    handle.set_strict_mode(0)
    for refused in (
        lambda: handle.pread(512, 8 * MIB),
        lambda: handle.trim(2 * MIB, 7 * MIB),
        lambda: handle.pwrite(b"x", 0, flags=nbd.CMD_FLAG_DF),
    ):
        try:
            refused()
        except nbd.Error as error:
            assert error.errnum != 0, error
        else:
            raise AssertionError("was not refused")
    handle.shutdown()


def leave_in_the_middle():
    """Who goes without a word leaves others alone."""
    witness = connect()
    for _ in range(10):
        handle = connect(CONTEXTS[:1])
        for n in range(60):
            data = nbd.Buffer.from_bytearray(bytearray(100 * KIB))
            handle.aio_pwrite(data, n * 128 * KIB)
            handle.aio_pread(nbd.Buffer(100 * KIB), n * 128 * KIB)
        # Some of it has been sent by now, in the middle of a payload at best; all of it, if
        # the server was quick.
        if handle.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
            handle.aio_notify_write()
        del handle
        assert len(witness.pread(4 * KIB, 0)) == 4 * KIB
    witness.shutdown()


many_at_once()
out_of_order()
status()
flags()
leave_in_the_middle()
print("done")
