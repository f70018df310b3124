"""Files that are there whole or not at all."""

import pytest

from pizza_steak import atomic


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


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "array"
    for left in (f".{'0' * 32}.array", f".{'f' * 32}.array"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "images.npy").write_bytes(b"half")
    (tmp_path / f".{'0' * 32}.other-array").write_text("another's")
    atomic.make_once(path, lambda temporary: temporary.write_text("whole"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "array",
        ".array.lock",
        f".{'0' * 32}.other-array",
    }


def test_what_is_there_is_not_made_again(tmp_path):
    path = tmp_path / "array"
    path.write_text("whole")
    atomic.make_once(path, lambda temporary: temporary.write_text("again"))
    assert path.read_text() == "whole"
