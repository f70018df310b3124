"""Runs a command: parses flags, calls the library, reports a user's mistake in one line."""

import contextlib
import functools
import io
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NoReturn

import wrapt
from absl import app, flags
from absl import logging as absl_logging

from pizza_steak import flagfile, signals
from pizza_steak.errors import FlagError, UserError, fault_of_the_machine, quoted
from pizza_steak.flags import define_flags, fields, from_flags
from pizza_steak.help import help_of, suggestions
from pizza_steak.text_width import printable

_HELP = {"-h", "-help", "--help", "-?", "--helpshort"}
_FULL_HELP = {"-helpfull", "--helpfull"}


class _Formatter(logging.Formatter):
    """Formats a warning; names of files in it may have any characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def run(
    main: Callable[..., None], config: type, arguments: str | None = None, *, gpus: bool = False
) -> None:
    """Calls `main` with the configuration from the command line, then exits.

    The exit status is 0; 1 with one line on stderr for a `UserError`; 2 for wrong flags, with a
    `FlagError` too; or 130 after Ctrl-C. Any other exception is a bug of ours and keeps its
    traceback.

    Args:
      main: Takes the configuration, and with `arguments` also the list of arguments.
      config: The class of the configuration, a dataclass of concerns.
      arguments: What the arguments that are not flags are called, such as "IMAGE"; one or more are
        then required. By default the command takes flags only.
      gpus: Whether TensorFlow may use GPUs. A command that does not need them leaves their memory
        to others.
    """
    own_process()
    signals.wake_main_thread()
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    define_flags(config)
    flags.FLAGS.set_gnu_getopt()  # Flags may follow arguments.
    absl_logging.get_absl_handler().setFormatter(_Formatter("warning: %(message)s"))

    def call(argv: list[str]) -> None:
        try:
            with _quiet_when_cut_short():
                main(from_flags(config), *([argv[1:]] if arguments else ()))
        except KeyboardInterrupt as error:  # Its message, if any, says how to go on.
            print(printable(" ".join(map(str, ("interrupted", *error.args)))), file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(2 if isinstance(error, FlagError) else 1)
        except MemoryError as error:
            sys.exit(f"error: out of memory {error}".rstrip())
        except Exception as error:
            if user_error := quoted(error):
                sys.exit(f"error: {printable(str(user_error))}")
            if fault := fault_of_the_machine(error):
                again = "run the same command again when that is mended"
                sys.exit(f"error: {printable(fault)}; {again}")
            raise

    app.run(call, flags_parser=functools.partial(_parse, config=config, arguments=arguments))


def own_process() -> None:
    """Sets what belongs to a process, not to a library: for commands and the processes they start.

    A run has the same weights wherever it is trained: Keras's own settings and not the user's are
    in force. What a stream cannot encode is printed escaped.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # They would cut trainings short.
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
        os.environ.pop(name, None)
    wrapt.when_imported("keras")(_set_keras_defaults)
    # Damaged EXIF data or a dropped alpha channel is no reason for a warning about a sound image.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _set_keras_defaults(keras: ModuleType) -> None:
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)


def show(text: str) -> None:
    """Prints lines, which their reader, such as `head`, may cut short.

    Other characters that steer a terminal are escaped: the names of files and classes may have
    them.
    """
    with _quiet_when_cut_short():
        print(printable(text, keep="\n"), flush=True)


@contextlib.contextmanager
def _quiet_when_cut_short() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # The reader of a pipe has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _parse(argv: list[str], config: type, arguments: str | None) -> list[str]:
    if (_HELP | _FULL_HELP) & set(argv):  # absl would exit with status 1.
        doc = sys.modules["__main__"].__doc__ or ""
        show(help_of(config, doc, full=bool(_FULL_HELP & set(argv))))
        sys.exit(0)
    try:
        rest = flags.FLAGS(flagfile.expand(argv, config))
    except flagfile.FlagfileError as error:
        _exit_for_flags(f"--flagfile={error}", hint="")
    except flags.UnrecognizedFlagError as error:
        unknown = f"unknown flag --{error.flagname}"
        if meant := suggestions(config, error.flagname):
            _exit_for_flags(f"{unknown}; did you mean {' or '.join(meant)}?", hint="")
        _exit_for_flags(unknown)
    except flags.Error as error:
        _exit_for_flags(" ".join(str(error).split()))
    if len(rest) > 1 and not arguments:
        if any(field.name == "archive" for _, field in fields(config)):
            if flags.FLAGS.archive:  # Perhaps the shell expanded a pattern.
                several = "quote a pattern of several archives: --archive='part-*.zip'"
                _exit_for_flags(f"unexpected argument {rest[1]!r}; {several}", hint="")
            archive = shlex.quote(f"--archive={rest[1]}")
            _exit_for_flags(f"unexpected argument; did you mean {archive}?", hint="")
        _exit_for_flags(f"unexpected argument {rest[1]!r}")
    if len(rest) == 1 and arguments:
        _exit_for_flags(f"expected {arguments}, one or more")
    return rest


def _exit_for_flags(message: str, hint: str = "; --helpfull lists the flags") -> NoReturn:
    print(f"error: {printable(message)}{hint}", file=sys.stderr)
    sys.exit(2)
