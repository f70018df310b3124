"""A program that finds TensorFlow imported is otherwise as one that Python has just started."""

import os
import subprocess
import sys

import pytest
import warm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper, which Linux alone has"),
]

SEEN = """
import os, sys
print(__name__, vars(sys.modules["__main__"]) is globals(), sys.argv, sys.path[0])
print(os.getcwd(), os.environ.get("ADDED"), "PATH" in os.environ, os.getppid())
print(os.getsid(0) == os.getpid(), len(os.listdir("/proc/self/fd")))
print(os.listdir("/proc/self/task") == [str(os.getpid())])
print(sys.stdin.read(), sys.stdout.isatty(), sys.stdout.line_buffering)
print("an error", file=sys.stderr)
"""


def outcome(popen: type[subprocess.Popen], code: str, *argv: str, **options):
    """Exit status, stdout and the last line of stderr."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    options = {"env": os.environ, **options}
    process = popen([sys.executable, "-c", code, *argv], text=True, **pipes, **options)
    stdout, stderr = process.communicate("input", timeout=60)
    return process.returncode, stdout, stderr.splitlines()[-1:]


@pytest.mark.parametrize("own_session", [False, True])
def test_it_sees_what_it_was_given(tmp_path, own_session):
    options = {
        "cwd": tmp_path,
        "env": {"PATH": os.environ["PATH"], "ADDED": "1"},
        "start_new_session": own_session,
    }
    seen = outcome(warm.Popen, SEEN, "an argument", **options)
    assert seen == outcome(subprocess.Popen, SEEN, "an argument", **options)
    assert seen[0] == 0 and seen[2] == ["an error"]


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a line')",
        "print(1 / 0)",
        *(f"import signal; signal.raise_signal(signal.{name})" for name in
          ("SIGTERM", "SIGKILL", "SIGINT", "SIGPIPE")),
        "import atexit; atexit.register(print, 'the end')",
        "import threading, time; threading.Timer(0.1, print, ['a thread']).start()",
    ],
)  # fmt: skip
def test_it_ends_as_it_would(code):
    assert outcome(warm.Popen, code) == outcome(subprocess.Popen, code)


def test_it_finds_tensorflow_imported_and_not_begun():
    code = """
import sys
tf = sys.modules["tensorflow"]
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
print(len(tf.config.list_logical_devices("CPU")))
"""
    assert outcome(warm.Popen, code)[:2] == (0, "3\n")


def test_no_two_draw_the_same():
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = (outcome(warm.Popen, code)[1].split() for _ in range(2))
    assert not set(first) & set(second)
