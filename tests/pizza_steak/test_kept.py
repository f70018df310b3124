"""What is kept on the disk is made once, and made again where it is damaged."""

import os
import shutil

import pytest

from pizza_steak import kept

CONTENT = {"images.npy": b"images" * 1000, "bad.json": b"[]"}


def make(folder):
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def make_again(path):
    """Returns whether what is there was made again."""
    made = []
    kept.make_once(path, lambda temporary: (made.append(temporary), make(temporary)))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == CONTENT
    return bool(made)


@pytest.fixture
def path(tmp_path):
    kept.make_once(tmp_path / "array", make)
    return tmp_path / "array"


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a bit flipped": flip_a_bit,
    "zeros": lambda file: file.write_bytes(bytes(len(CONTENT["images.npy"]))),
    "cut": lambda file: os.truncate(file, 100),
    "empty": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(CONTENT["images.npy"] + b"more"),
    "missing": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(path, damage, caplog):
    assert not make_again(path)
    DAMAGES[damage](path / "images.npy")
    assert make_again(path)
    assert f"{path} is damaged: making it again" in caplog.text
    assert not make_again(path)


def test_a_file_of_its_own_is_kept_like_a_folder(tmp_path):
    path = tmp_path / "index.npz"
    kept.make_once(path, lambda temporary: temporary.write_bytes(b"index"))
    flip_a_bit(path)
    kept.make_once(path, lambda temporary: temporary.write_bytes(b"index"))
    assert path.read_bytes() == b"index"


def test_what_has_no_checksums_is_made_again_unless_it_is_sound(path, caplog):
    (path.parent / ".array.checksums").write_bytes(b"{")
    kept.make_once(path, lambda temporary: pytest.fail("made again"), sound=lambda found: True)
    flip_a_bit(path / "images.npy")
    (path.parent / ".array.checksums").unlink()
    assert make_again(path)
    assert not caplog.text  # It may be of an older version.


def test_a_copy_is_not_made_again(path, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copytree(path, copy / "array", copy_function=shutil.copyfile)  # Its times are new.
    shutil.copyfile(tmp_path / ".array.checksums", copy / ".array.checksums")
    assert not make_again(copy / "array")
    monkeypatch.setattr(kept, "_crc32", lambda path: pytest.fail("read again"))
    assert not make_again(copy / "array")


def test_what_a_killed_process_left_is_removed(tmp_path):
    for left in (f".{'0' * 32}.array", f".{'f' * 32}.array"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "images.npy").write_bytes(b"half")
    (tmp_path / f".{'0' * 32}..array.checksums").write_text("half")
    (tmp_path / f".{'0' * 32}.other-array").write_text("another's")
    kept.make_once(tmp_path / "array", make)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("array", ".array.lock", ".array.checksums"),
        f".{'0' * 32}.other-array",
    }


def test_verify_reads_all_and_what_is_damaged_is_made_again(path):
    kept.make_once(path / "within", make)
    assert kept.verify(path.parent) == {path: True, path / "within": True}
    status = (path / "images.npy").stat()
    flip_a_bit(path / "images.npy")  # As a disk does it: the file's times do not tell.
    os.utime(path / "images.npy", ns=(status.st_atime_ns, status.st_mtime_ns))
    kept.make_once(path, lambda temporary: pytest.fail("made again"))
    assert kept.verify(path.parent) == {path: False, path / "within": True}
    assert make_again(path)
