"""Starts Python programs that find TensorFlow imported: they are forked from a server.

The server imports TensorFlow and this project, and computes nothing, so that it can be forked. A
program gets its arguments, environment, folder, pipes, signals and exit status as if Python had
started it; only variables that TensorFlow reads while it is imported are fixed by then, so there is
one server for each set of them. A program is a child of the process that starts it.
"""

import ctypes
import functools
import gc
import importlib
import os
import runpy
import subprocess
import sys
import time
import types
import warnings
from multiprocessing import connection, reduction

import numpy

_MODULES = (
    "keras_tuner",
    "trainers.finished.evaluation",
    "trainers.throughput.measurement",
    "trainers.training.comparison",
    "tuning.trials.loop",
)
_PR_SET_CHILD_SUBREAPER = 36  # Of Linux's prctl.


class Popen(subprocess.Popen):
    """A `Popen` of `[sys.executable, "-m", module, *argv]`, or with "-c" and code, on Linux."""

    # The one method of Popen that starts a process; all the others serve the process it started.
    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
        creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
        restore_signals, gid, gids, uid, umask, start_new_session, *_
    ):  # fmt: skip
        server = _server(_read_at_import(env))
        # An orphan becomes a child of its nearest ancestor that is a subreaper.
        _be_subreaper(True)
        try:
            server.send((args[1:], dict(env), os.fspath(cwd or os.getcwd()), start_new_session))
            for handle, own in zip((p2cread, c2pwrite, errwrite), range(3), strict=True):
                reduction.send_handle(server, own if handle == -1 else handle, None)
            self.pid, _ = server.recv(), server.recv()
        finally:
            _be_subreaper(False)
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        self._child_created = True


def _read_at_import(env: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Returns the variables that are read from the environment until TensorFlow is imported."""
    names = ("LD_PRELOAD", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")
    return tuple((name, value) for name in names if (value := env.get(name)))


def _be_subreaper(value: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(value), 0, 0, 0)


@functools.cache
def _server(variables: tuple[tuple[str, str], ...]) -> connection.Connection:
    """Starts a server, which ends with this process."""
    ours, its = connection.Pipe()
    with its:
        subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
            | dict(variables),
            pass_fds=[its.fileno()],
            start_new_session=True,  # Ctrl-C is not for it.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours


def _serve(requests: connection.Connection) -> list[str]:
    """Forks programs; returns the arguments of Python in each of them."""
    while True:
        try:
            argv, env, cwd, own_session = requests.recv()
        except EOFError:
            sys.exit()
        handles = [reduction.recv_handle(requests) for _ in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow's idle threads do not matter.
            between = os.fork()
        if between:
            for handle in handles:
                os.close(handle)
            os.waitpid(between, 0)
            requests.send("the program is a child of the client's")
            continue
        between = os.getpid()
        if pid := os.fork():
            requests.send(pid)
            os._exit(0)
        break
    while os.getppid() == between:
        time.sleep(0.001)
    requests.close()
    for target, handle in enumerate(handles):
        os.dup2(handle, target)
        os.close(handle)
    # Those of the server were made for other files: they could not be reconfigured.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    if own_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    numpy.random.seed()  # Else all programs draw the same; Python's own `random` sees to itself.
    return argv


def _run(kind: str, program: str, *argv: str) -> None:
    """Runs a module or code as Python does, the main module included."""
    sys.argv = [kind, *argv]
    if kind == "-m":
        sys.path[0] = os.getcwd()
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    from pizza_steak.tensorflow_import import import_tensorflow

    import_tensorflow()
    for name in _MODULES:
        importlib.import_module(name)
    gc.freeze()  # Else the first collection in each program copies all that was imported.
    _run(*_serve(connection.Connection(int(sys.argv[1]))))
