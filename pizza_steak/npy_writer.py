"""Writes .npy files, some rows at a time."""

import pathlib

import numpy as np
import numpy.typing as npt


class NpyWriter:
    """Writes an array to a .npy file, some rows at a time, in order.

    The file is not memory-mapped: pages written to a map count as memory of the process until they
    are on the disk.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: npt.DTypeLike):
        self._file = path.open("wb")
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).data)

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
