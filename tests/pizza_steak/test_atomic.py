"""Files that are there whole or not at all."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import filelock
import pytest

from pizza_steak import atomic

ROOT = pathlib.Path(__file__).parents[2]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.weights.h5"
    with atomic.atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name.endswith(".weights.h5")
    assert path.read_text() == "new"
    with pytest.raises(KeyError), atomic.atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("half")
        raise KeyError
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_gets_its_name_is_on_the_disk(tmp_path, monkeypatch):
    on_disk, fsync, replace = set(), os.fsync, os.replace

    def noted(file):
        fsync(file)
        on_disk.add(os.fstat(file).st_ino)

    def checked(source, target):
        parts = [source, *source.rglob("*")] if source.is_dir() else [source]
        assert {part.stat().st_ino for part in parts} <= on_disk
        on_disk.discard(target.parent.stat().st_ino)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", checked)
    with atomic.atomic_path(tmp_path / "array") as temporary:
        (temporary / "within").mkdir(parents=True)
        (temporary / "within" / "images.npy").write_bytes(b"images")
    assert tmp_path.stat().st_ino in on_disk  # Else the name is not.
    atomic.make_folder(tmp_path / "runs" / "a")
    assert {tmp_path.stat().st_ino, (tmp_path / "runs").stat().st_ino} <= on_disk


def test_who_waits_for_a_lock_is_told_for_whom(tmp_path, monkeypatch, caplog):
    path = tmp_path / "array"
    monkeypatch.setattr(atomic, "_SILENT_SECONDS", 0.1)
    code = """
import pathlib, sys
from pizza_steak import atomic
with atomic.lock(pathlib.Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        holder.stdout.readline()
        ended = threading.Event()

        def wait():
            with atomic.locked(path):
                ended.set()

        threading.Thread(target=wait, daemon=True).start()
        assert not ended.wait(timeout=1)
        assert f"waiting for process {holder.pid}, which works on {path}" in caplog.text
        holder.communicate()
        assert ended.wait(timeout=60)


def test_a_file_system_without_locks_still_has_one_process_at_a_time(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock's own.
        with (
            atomic.locked(tmp_path / "array"),
            pytest.raises(filelock.Timeout),
        ):
            atomic.lock(tmp_path / "array").acquire(timeout=0)


def test_what_a_killed_process_left_of_a_file_is_removed_when_it_is_written_again(tmp_path):
    left, other = (tmp_path / f".{'0' * 32}.{name}" for name in ("report.html", "a report.html"))
    left.write_text("half")
    other.write_text("of another file")
    with atomic.output_file(tmp_path / "report.html") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "report.html").read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "report.html"]
