"""What every command does around its library call: read flags, and tell errors from bugs."""

import signal
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags

from trainers import config as configs
from trainers import devices


def run(main: Callable[[Any], None], config: type) -> None:
    """Calls `main` with the configuration that the flags say, and exits.

    The exit status is 0, 1 with one line on stderr for a `UserError`, 2 for wrong flags, and 130
    after Ctrl-C. Any other exception is a bug of ours and keeps its traceback.
    """
    configs.define_flags(config)
    app.run(lambda argv: _call(main, configs.from_flags(config)), flags_parser=_parse)


def _call(main: Callable[[Any], None], values: Any) -> None:
    devices.prepare(values.devices)
    from pizza_steak.errors import UserError  # Imports TFDS, which --help must not wait for.

    try:
        main(values)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _parse(argv: list[str]) -> list[str]:
    if {"-h", "-help", "--help", "--helpfull"} & set(argv):  # absl would exit with status 1.
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.module_help(configs.__name__))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _exit_for_flags(" ".join(str(error).split()))
    if len(rest) > 1:
        _exit_for_flags(f"unexpected argument {rest[1]!r}")
    return rest


def _exit_for_flags(message: str) -> None:
    print(f"error: {message}; --help lists the flags", file=sys.stderr)
    sys.exit(2)
