"""The index of prepared records: label, filename, digest and place of each image, memory-mapped.

It is a folder of arrays beside the records. All processes that open it share its pages, and opening
takes the same time for any number of images.
"""

import collections
import contextlib
import hashlib
import inspect
import itertools
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pizza_steak.kept import make_once
from pizza_steak.npy_writer import NpyWriter

_FOLDER = "index-4"  # Older ones are files that are read as a whole.
# Rows that are in memory at once, when the index is made.
_BLOCK = 2**14
# Bytes of a TFRecord's frame before its content.
_FRAME_HEAD = 12
# The shape of a row and the type of each column, by its name in `Records`.
_COLUMNS: dict[str, tuple[tuple[int, ...], type]] = {
    "labels": ((), np.int64),
    "digests": ((2,), np.uint64),
    "_shards": ((), np.int64),
    "_starts": ((), np.int64),
    "_offsets": ((), np.int64),
    "_lengths": ((), np.int64),
}


class Filenames(Sequence[str]):
    """The filenames of N images, of which only those that are asked for are read.

    Args:
      text: uint8 array, all filenames one after another, in UTF-8.
      ends: int64 array of shape (N + 1,), 0 and where each filename ends.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self._text = text
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[one] for one in range(len(self))[row]]
        row = range(len(self))[row]
        return self._text[self._ends[row] : self._ends[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for row in range(0, len(self), _BLOCK):
            ends = self._ends[row : row + _BLOCK + 1].tolist()
            text = self._text[ends[0] : ends[-1]].tobytes()
            for start, end in itertools.pairwise(end - ends[0] for end in ends):
                yield text[start:end].decode()


def columns(
    folder: pathlib.Path, files: Mapping[str, int], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns what `Records` says of each image and of all; makes the index if it is missing.

    Args:
      folder: The folder of the records, where the index is kept.
      files: The number of images in each record file, by path, in the order of the rows.
      classes: The class names, in the order of the labels.

    Raises:
      OSError: The index cannot be written.
      tf.errors.DataLossError: A record file is damaged.
    """
    path = folder / _FOLDER
    make_once(path, lambda temporary: _write(temporary, files, classes))
    found = {name: _mapped(path, name) for name in _COLUMNS}
    fingerprint = (path / "fingerprint").read_text(encoding="utf-8")
    return found | {"filenames": _filenames(path), "fingerprint": fingerprint}


def gather(column: np.ndarray | tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns the numbers at int64 `rows` of a column, in a graph that other processes may run.

    Of a mapped column, the graph has the path of the file alone. It must be the same there.
    """
    stored = getattr(column, "base", None)
    if not isinstance(stored, np.memmap) or not stored.filename or stored.shape != column.shape:
        return tf.gather(column, rows)
    head = stored.offset // stored.itemsize
    numbers = tf.raw_ops.ImmutableConst(
        dtype=stored.dtype,
        shape=[head + len(stored)],
        memory_region_name=os.path.abspath(stored.filename),
    )
    return tf.gather(numbers, rows + head)


def check(files: Mapping[str, int]) -> None:
    """Reads record files; `files` are those of `columns`.

    Raises:
      Exception: A file is damaged; TensorFlow and Python each raise their own.
    """
    for _ in _blocks(files):
        pass


def _write(folder: pathlib.Path, files: Mapping[str, int], classes: Sequence[str]) -> None:
    folder.mkdir()
    count, end, longest = sum(files.values()), 0, 0
    with contextlib.ExitStack() as stack:

        def writer(name: str, shape: tuple[int, ...], dtype: type) -> NpyWriter:
            return stack.enter_context(NpyWriter(folder / f"{name}.npy", shape, dtype))

        writers = {name: writer(name, (count, *row), dt) for name, (row, dt) in _COLUMNS.items()}
        ends = writer("filename_ends", (count + 1,), np.int64)
        ends.write(np.zeros(1, np.int64))
        text = stack.enter_context((folder / "filenames.utf8").open("wb"))
        for block in _blocks(files):
            filenames = block.pop("filenames")
            for name, column in block.items():
                writers[name].write(np.array(column, _COLUMNS[name][1]))
            encoded = [name.encode() for name in filenames]
            text.write(b"".join(encoded))
            block_ends = end + np.cumsum([len(name) for name in encoded])
            ends.write(block_ends)
            end = block_ends[-1]
            longest = max(longest, *map(len, filenames))
    fingerprint = _fingerprint(folder, classes, count, longest)
    (folder / "fingerprint").write_text(fingerprint, encoding="utf-8")


def _fingerprint(folder: pathlib.Path, classes: Sequence[str], count: int, longest: int) -> str:
    """Returns `Records.fingerprint` of a written index.

    Runs that were made with older versions have it too: as there, each filename is hashed in UCS-4,
    filled to the length of the longest.
    """
    digest = hashlib.sha256("\0".join(classes).encode())
    # Each part is mapped anew: pages that stay mapped count as memory of the process.
    parts = [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]
    rows = max(_BLOCK // longest, 1)
    for part in parts:
        digest.update(_mapped(folder, "labels")[part].tobytes())
    for part in parts:
        filenames = _filenames(folder)[part]
        for first in range(0, len(filenames), rows):
            digest.update(np.array(filenames[first : first + rows], f"<U{longest}").tobytes())
    for part in parts:
        digest.update(_mapped(folder, "digests")[part].tobytes())
    return digest.hexdigest()[:12]


def _mapped(folder: pathlib.Path, name: str) -> np.ndarray:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def _filenames(folder: pathlib.Path) -> Filenames:
    text = np.asarray(np.memmap(folder / "filenames.utf8", np.uint8, "r"))
    return Filenames(text, _mapped(folder, "filename_ends"))


def _blocks(files: Mapping[str, int]) -> Iterator[dict[str, list]]:
    """Yields the columns of an index, and the filenames, some rows at a time.

    Raises:
      tf.errors.DataLossError: A file is damaged.
    """
    block: dict[str, list] = collections.defaultdict(list)
    for shard, (path, count) in enumerate(files.items()):
        found = 0
        for offset, record in _frames(path):
            feature = tf.train.Example.FromString(record).features.feature
            (encoded,) = feature["image"].bytes_list.value
            block["labels"].append(feature["label"].int64_list.value[0])
            block["filenames"].append(feature["filename"].bytes_list.value[0].decode())
            block["digests"].append(struct.unpack(">2Q", hashlib.sha256(encoded).digest()[:16]))
            block["_shards"].append(shard)
            block["_starts"].append(offset - _FRAME_HEAD)
            block["_offsets"].append(offset + record.index(encoded))
            block["_lengths"].append(len(encoded))
            found += 1
            if len(block["_shards"]) == _BLOCK:
                yield block
                block = collections.defaultdict(list)
        if found != count:
            raise tf.errors.DataLossError(None, None, f"{path}: {found} records of {count}")
    if block:
        yield block


def _frames(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields the records of a TFRecord file, each with the offset of its content.

    A record is its length (8 bytes), the checksum of that (4), the content, and its checksum (4):
    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details

    Raises:
      tf.errors.DataLossError: A checksum is wrong, or the file was cut.
    """
    offset = _FRAME_HEAD
    # A tf.data.Dataset takes twenty times as long for each record, or holds many in memory. The
    # function within the decorator does not warn that it is old.
    for record in inspect.unwrap(tf.compat.v1.io.tf_record_iterator)(path):
        yield offset, record
        offset += len(record) + 4 + _FRAME_HEAD
