"""A run that makes mistakes."""

import pytest
from small_runs import fit


@pytest.fixture(scope="session")
def untrained(small_flags, tmp_path_factory):
    """The directory of a finished run that learned nothing, so that it makes mistakes.

    Its model has layers of this package, which a process that loads it has to know.
    """
    run_dir = tmp_path_factory.mktemp("untrained") / "run"
    flags = ["--learning_rate=0", "--epochs=1", "--samplewise_center"]
    return fit(*small_flags, *flags, f"--run_dir={run_dir}").run_dir
