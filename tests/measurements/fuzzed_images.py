"""Decodes damaged image files, and counts crashes, hangs, wrong verdicts and too much memory.

python tests/measurements/fuzzed_images.py --inputs=100000

Small images of every kind are changed at random: bits, bytes, numbers; parts are cut, doubled and
mixed with those of other files. A child process decodes them, so that a crash costs one input. An
input is a function of its number: `--first=N --inputs=1` decodes one again. With `--graph`, the
decoder of TensorFlow graphs decodes each too.
"""

import argparse
import collections
import os
import pathlib
import re
import resource
import select
import struct
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

if __name__ == "__main__":
    sys.path[:0] = [str(path) for path in pathlib.Path(__file__).resolve().parents[1:3]]

from images import encode, noise, turned

from pizza_steak import decoding, inspection
from pizza_steak.decoding import Format
from pizza_steak.errors import UserError

# Seconds and bytes that one image may take, if it has no more than so many pixels.
SECONDS, MEMORY = 10, 500_000_000
MAX_PIXELS = 2**24
# Formats that take all ways through the decoder; they have to refuse the same images.
FORMATS = (
    Format((8, 8), max_pixels=MAX_PIXELS),
    Format((24, 32), "nearest", "crop", "rgba", exif="ignore", max_pixels=MAX_PIXELS),
    Format((30, 20), "bicubic", "pad", "grayscale", max_pixels=MAX_PIXELS),
)
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def sound_images() -> dict[str, bytes]:
    """Small images of every kind, by a name that begins with the kind."""
    rgb, rgba, palette = (noise(40, 30, mode) for mode in ("RGB", "RGBA", "P"))
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 500, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    described = {"exif": turned(6), "icc_profile": bytes(200)}
    found = {
        "JPEG": encode(rgb, "JPEG", quality=60, **described),
        "JPEG progressive": encode(rgb, "JPEG", progressive=True, restart_marker_rows=1),
        "JPEG grey": encode(rgb.convert("L"), "JPEG", comment=b"comment"),
        "JPEG CMYK": encode(rgb.convert("CMYK"), "JPEG"),
        "JPEG of two": encode(rgb, "MPO", save_all=True, append_images=[rgb]),
        "PNG": encode(rgb, "PNG", pnginfo=text, **described),
        "PNG alpha": encode(rgba, "PNG"),
        "PNG palette": encode(palette, "PNG", transparency=3),
        "PNG grey": encode(rgb.convert("L"), "PNG", bits=4),
        "PNG deep": encode(
            Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"
        ),
        "PNG animated": encode(rgb, "PNG", save_all=True, append_images=[noise(40, 30, seed=1)]),
        "BMP": encode(rgb, "BMP"),
        "BMP palette": encode(palette, "BMP"),
        "GIF": encode(palette, "GIF", comment=b"comment"),
        "GIF animated": encode(palette, "GIF", save_all=True, append_images=[rgb.convert("P")]),
        "WEBP": encode(rgb, "WEBP", **described),
        "WEBP lossless": encode(rgba, "WEBP", lossless=True),
        "WEBP animated": encode(rgb, "WEBP", save_all=True, append_images=[noise(40, 30, seed=1)]),
        **{
            f"TIFF {kind}": encode(rgb, "TIFF", compression=kind)
            for kind in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")
        },
        "TIFF bits": encode(rgb.convert("1"), "TIFF", compression="group4", **described),
        "PPM": encode(rgb, "PPM"),
        "AVIF": encode(rgb, "AVIF", **described),
    }
    if "HEIF" in decoding.KINDS:
        found["HEIF"] = encode(rgb, "HEIF", exif=turned(6))
    return found


def damaged(number: int, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of the image that an input was made from, and the input."""
    rng = np.random.default_rng(number)
    name = [*sound][number % len(sound)]
    content = bytearray(sound[name])
    for _ in range(rng.integers(1, 5)):
        # Most of what a decoder believes is at the start.
        end = len(content) if rng.random() < 0.5 else min(len(content), 100)
        place, other = (int(rng.integers(end + 1)) for _ in range(2))
        length = int(rng.integers(1, 64))
        match rng.integers(8):
            case 0 | 1:
                content[place : place + 1] = bytes([rng.integers(256)])
            case 2:
                content[place : place + 1] = bytes(
                    byte ^ 1 << int(rng.integers(8)) for byte in content[place : place + 1]
                )
            case 3:
                order, width = rng.choice(["<", ">"]), rng.choice(["H", "I"])
                value = int(rng.choice(_NUMBERS)) & (0xFFFF if width == "H" else 0xFFFFFFFF)
                value = struct.pack(order + width, value)
                content[place : place + len(value)] = value
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[other : other + length]
            case 6:
                another = sound[str(rng.choice([*sound]))]
                content[place : place + length] = another[other : other + length]
            case 7:
                del content[len(content) - min(length, len(content)) :]
    if name.startswith("PNG") and rng.random() < 0.7:  # Else a checksum refuses most.
        content = bytearray(_with_checksums(bytes(content)))
    return name, bytes(content)


def _with_checksums(png: bytes) -> bytes:
    content, start = bytearray(png), 8
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 8 + length
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[start + 4 : end]))
        start = end + 4
    return bytes(content)


def verdict(encoded: bytes, graph: bool) -> str:
    """What is found out about an input: "sound", "refused", or what is wrong with the decoders."""
    faults = []
    for format in FORMATS:
        try:
            faults += decoding.decode_images(1, lambda place: encoded, format)[1]
        except UserError as error:
            return f"WRONG: {error}"
    faults.append(inspection._look("train", "a", "1.jpg", encoded, FORMATS[0]).fault or "")
    if len({bool(fault) for fault in faults}) > 1:
        return f"WRONG: verdicts differ: {faults}"
    if not faults[0]:
        try:
            decoding.upright_image(encoded, 20)
        except Exception as error:
            return f"WRONG: not drawn: {error!r}"
    found = "refused" if faults[0] else "sound"
    if graph:
        from pizza_steak import decoding_in_graph

        found += ", graph differs" * decoding_in_graph.needs_pillow(encoded, FORMATS[0])
    return found


def _decode_all(first: int, inputs: int, graph: bool) -> None:
    """Writes a line for each input: its number, then what was found out."""
    sound = sound_images()
    for encoded in sound.values():  # What is loaded once does not count.
        verdict(encoded, graph)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _peak()
    for number in range(first, first + inputs):
        name, encoded = damaged(number, sound)
        print(f"{number}\t{name}\t", end="", flush=True)
        found, taken = verdict(encoded, graph), _peak() - before
        print(f"WRONG: {taken:,} bytes" if taken > MEMORY else found, flush=True)


def _peak() -> int:
    """The most memory of this process since the last call, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def run(inputs: int, first: int = 0, graph: bool = False) -> collections.Counter[tuple[str, str]]:
    """Returns the number of inputs of each kind with each verdict; crashes and hangs are some.

    What is wrong is printed with the number of the input.
    """
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    end = first + inputs
    while first < end:
        command = [sys.executable, "-W", "ignore", __file__, "--child", f"--first={first}"]
        command += [f"--inputs={end - first}", *["--graph"] * graph]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            first = _count(child, first, counts)
    return counts


def _count(child: subprocess.Popen, first: int, counts: collections.Counter) -> int:
    """Counts a child's verdicts until it ends or hangs; returns the number of the next input."""
    assert child.stdout
    pipe, pending, patience = child.stdout.fileno(), b"", 120  # Seconds until it has started.
    while True:
        ready, _, _ = select.select([pipe], [], [], patience)
        chunk = os.read(pipe, 2**16) if ready else b""
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            number, name, found = line.decode(errors="replace").split("\t")
            if found.startswith("WRONG"):
                print(f"input {number} ({name}): {found}", flush=True)
            counts[name.split()[0], re.sub(r":.*", "", found)] += 1
            first = int(number) + 1
        if chunk:
            patience = SECONDS
            continue
        if not ready:
            child.kill()
        status = child.wait()
        if not pending and status == 0:
            return first
        if not pending:
            raise RuntimeError(f"the child ended with status {status} between inputs")
        number, name, _ = pending.decode().split("\t")
        found = f"WRONG: ended with status {status}" if ready else "WRONG: hangs"
        print(f"input {number} ({name}): {found}", flush=True)
        counts[name.split()[0], found] += 1
        return int(number) + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        _decode_all(asked.first, asked.inputs, asked.graph)
        return
    for (kind, found), count in sorted(run(asked.inputs, asked.first, asked.graph).items()):
        print(f"{kind:8}{found:40}{count:>10,}")


if __name__ == "__main__":
    main()
