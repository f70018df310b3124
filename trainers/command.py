"""What every command does around its library call: read flags, and tell errors from bugs."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from trainers.flags import define_flags, from_flags, help_of
from trainers.hardware import devices, preemption


def run(main: Callable[..., None], config: type, arguments: str | None = None) -> None:
    """Calls `main` with the configuration that the flags say, and exits.

    Without `arguments` nothing but flags is taken; it names what else is expected, one or more of
    it, and `main` is called with a list of these as well.

    The exit status is 0, 1 with one line on stderr for a `UserError`, 2 for wrong flags, 75 with
    one line for a `PreemptedError`, and 130 after Ctrl-C. Any other exception is a bug of ours and
    keeps its traceback.
    """
    define_flags(config)
    flags.FLAGS.set_gnu_getopt()  # Flags may follow what is no flag.
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("warning: %(message)s"))

    def call(argv: list[str]) -> None:
        _call(main, from_flags(config), *([argv[1:]] if arguments else ()))

    app.run(call, flags_parser=functools.partial(_parse, config=config, arguments=arguments))


def _call(main: Callable[..., None], values: Any, *arguments: list[str]) -> None:
    try:
        if hasattr(values, "devices"):  # Else nothing is computed, and TensorFlow is not needed.
            devices.prepare(values.devices)
        main(values, *arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except preemption.PreemptedError as error:
        print(f"preempted; {error}", file=sys.stderr)
        sys.exit(preemption.EXIT_STATUS)
    except BrokenPipeError:  # Whoever reads has read enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        from pizza_steak.errors import UserError  # Imports TFDS, which --help must not wait for.

        if not isinstance(error, UserError):
            raise
        sys.exit(f"error: {error}")


def _parse(argv: list[str], config: type, arguments: str | None) -> list[str]:
    if {"-h", "-help", "--help", "--helpfull"} & set(argv):  # absl would exit with status 1.
        print(sys.modules["__main__"].__doc__)
        print(help_of(config))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _exit_for_flags(" ".join(str(error).split()))
    if len(rest) > 1 and not arguments:
        _exit_for_flags(f"unexpected argument {rest[1]!r}")
    if len(rest) == 1 and arguments:
        _exit_for_flags(f"expected {arguments}, one or more")
    return rest


def _exit_for_flags(message: str) -> None:
    print(f"error: {message}; --help lists the flags", file=sys.stderr)
    sys.exit(2)
