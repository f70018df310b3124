"""Reads hostile zips, of 130 GB together when unpacked, with 1 GB of address space.

python tests/measurements/hostile_archives.py

Each zip is listed, and every split of it read, in a process of its own. Prints what happened, the
seconds and the memory. Ends with status 1 if anything but an ArchiveError comes out.
"""

import bz2
import itertools
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator

from absl import app

_READ = """
import resource, sys, time
from pizza_steak.archive import read_archive
from pizza_steak.errors import ArchiveError
resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))
start, size = time.process_time(), 0
try:
    archive = read_archive(sys.argv[1])
    for split in archive.splits:
        for _, encoded in archive.read(split):
            size += len(encoded)
    told = "read"
except ArchiveError as error:
    told = str(error).split(": ", 1)[1]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{size / 1e9:.1f} GB read, {time.process_time() - start:.1f} s, {memory:.0f} MiB: {told}")
"""
_MB = 10**6


def main(argv):
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, entries in _hostile():
            path = pathlib.Path(folder, "hostile.zip")
            held = _write(path, entries)
            size = path.stat().st_size / _MB
            done = subprocess.run(
                [sys.executable, "-c", _READ, str(path)], capture_output=True, text=True
            )
            failures += done.returncode != 0
            told = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
            print(f"{name}: {size:,.1f} MB, unpacks to {held / 1e9:,.1f} GB; {told}", flush=True)
    sys.exit(bool(failures))


def _hostile() -> Iterator[tuple[str, Iterator[dict]]]:
    """Yields the name and the members of each zip."""
    yield "200 members of 250 MB", _repeated(200, _deflated(250))
    yield "20 that overlap", _repeated(20, _deflated(200), overlapping=True)
    yield "200 that overlap", _repeated(200, _deflated(250), overlapping=True)
    yield "claims 1,000 bytes and holds 400 MB", _repeated(2, _deflated(400), claimed=1000)
    packed = {**_deflated(250), "packed": bz2.compress(bytes(250 * _MB)), "method": 12}
    yield "bzip2, claims 100 bytes", _repeated(2, packed, claimed=100)
    yield "1,000,000 members", _repeated(1_000_000, _deflated(0))
    deep = itertools.chain(_repeated(2, _deflated(0)), _repeated(100, _deflated(0), depth=1000))
    yield "100 members in a thousand folders", deep
    yield "4 members of 240 MB, within every limit", _repeated(4, _deflated(240))
    noise = {"packed": bytes(85 * _MB), "size": 85 * _MB, "method": 0}
    noise["crc"] = zlib.crc32(noise["packed"])
    allowed = itertools.chain(_repeated(1, noise, start=100), _repeated(40, _deflated(205)))
    yield "40 members of 205 MB beside 85 MB that do not shrink, within every limit", allowed


def _deflated(megabytes: int) -> dict:
    content = bytes(megabytes * _MB)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(content) + compressor.flush()
    return {"packed": packed, "size": len(content), "crc": zlib.crc32(content), "method": 8}


def _repeated(count: int, entry: dict, *, start: int = 0, depth: int = 1, **more) -> Iterator[dict]:
    for number in range(start, start + count):
        label = ("pizza", "steak")[number % 2]
        yield {**entry, **more, "name": f"{label}/{'a/' * (depth - 1)}{number}.jpg"}


def _write(path: pathlib.Path, entries: Iterator[dict]) -> int:
    """Writes a zip; members that overlap share the bytes of the first. Returns what it unpacks to.

    zipfile does not write such zips.
    """
    directory, count, held, offset = [], 0, 0, 0
    with path.open("wb") as file:
        for entry in entries:
            name, packed = entry["name"].encode(), entry["packed"]
            size = entry.get("claimed", entry["size"])
            method = entry["method"]
            fields = (20, 0, method, 0, 33, entry["crc"], len(packed), size, len(name))
            if not (entry.get("overlapping") and count):
                offset = file.tell()
                file.write(struct.pack("<4s5H3L2H", b"PK\3\4", *fields, 0) + name + packed)
            directory.append(
                struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *fields, 0, 0, 0, 0, 0, offset) + name
            )
            count, held = count + 1, held + entry["size"]
        start = file.tell()
        for line in directory:
            file.write(line)
        end = file.tell()
        record = (44, 45, 45, 0, 0, count, count, end - start, start)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", *record))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, end - start, start, 0))
    return held


if __name__ == "__main__":
    app.run(main)
