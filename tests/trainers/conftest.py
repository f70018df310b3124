"""A small archive, and the flags of a run on it."""

import pytest
from small_runs import SIZE, fit, layout, train_and_test


@pytest.fixture(scope="session")
def archive(make_archive):
    """Dark and light pictures, 24 to train on and 12 to test on."""
    return make_archive(layout(train_and_test("dark", "light")), name="shades")


@pytest.fixture(scope="session")
def small_flags(archive, tmp_path_factory) -> list[str]:
    """The flags of a run of a second on `archive`, but for --run_dir; later flags come first."""
    return [
        f"--archive={archive}",
        f"--data_dir={tmp_path_factory.mktemp('data_dir')}",
        f"--image_size={SIZE}",
        "--filters=4",
        "--convolutions=1",
        "--batch_size=8",
        "--learning_rate=0.01",
        "--epochs=4",
        "--notensorboard",
    ]


@pytest.fixture(scope="session")
def untrained(small_flags, tmp_path_factory):
    """The directory of a finished run that learned nothing, so that it makes mistakes.

    Its model has layers of this package, which a process that loads it has to know.
    """
    run_dir = tmp_path_factory.mktemp("untrained") / "run"
    flags = ["--learning_rate=0", "--epochs=1", "--augment_on=device", "--vertical_flip"]
    return fit(*small_flags, *flags, f"--run_dir={run_dir}").run_dir
