"""Reads zips that are damaged at random or forged field by field.

python tests/measurements/fuzzed_archives.py --inputs=100000

Each is listed and read in every way. Ends with status 1 and the smallest such zip if anything but
an ArchiveError comes out, if a zip takes more than 10 s of a core, or if the process needs more
than 500 MB.
"""

import collections
import pathlib
import re
import resource
import signal
import sys
import tempfile
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import fuzzed_archives
import hypothesis

_INPUTS = flags.DEFINE_integer("inputs", 100_000, "How many zips are read.")
_SEED = flags.DEFINE_integer("seed", 1, "Draws them.")
_MOST_SECONDS = 10
_MOST_MEMORY = 500 * 2**20


def main(argv):
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    signal.signal(signal.SIGPROF, _too_long)
    told: collections.Counter[str] = collections.Counter()
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "food.zip")

        @hypothesis.seed(_SEED.value)
        @hypothesis.settings(
            max_examples=_INPUTS.value,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(fuzzed_archives.INPUTS)
        def read(drawn):
            nonlocal longest
            path.write_bytes(fuzzed_archives.edited(*drawn))
            signal.setitimer(signal.ITIMER_PROF, _MOST_SECONDS)
            start = time.process_time()
            result = fuzzed_archives.read(path)
            longest = max(longest, time.process_time() - start)
            signal.setitimer(signal.ITIMER_PROF, 0)
            told[_kind(result)] += 1
            assert [found.name for found in pathlib.Path(folder).iterdir()] == ["food.zip"]

        read()
    for kind, count in told.most_common():
        print(f"{count:8,}  {kind}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(told.values()):8,}  zips; the longest {longest:.3f} s; {memory:.0f} MiB at most")


def _kind(told: str) -> str:
    """Returns the refusal without names and numbers."""
    told = told.split(": ", 1)[-1].split(";")[0]
    told = re.sub(r"'.*'|\".*\"", "NAME", told)
    return re.sub(r"\d[\d,]*|0x[0-9a-f]+", "N", re.sub(r"\S+\.(jpg|png)\b", "NAME", told))[:70]


def _too_long(number, frame):
    raise TimeoutError(f"a zip takes more than {_MOST_SECONDS} s")


if __name__ == "__main__":
    app.run(main)
