"""Runs a command: parses flags, calls the library, reports a user's mistake in one line."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from pizza_steak.errors import UserError
from pizza_steak.flags import define_flags, from_flags, help_of


def run(main: Callable[..., None], config: type, arguments: str | None = None) -> None:
    """Calls `main` with the configuration from the command line, then exits.

    The exit status is 0; 1 with one line on stderr for a `UserError`; 2 for wrong flags; or 130
    after Ctrl-C. Any other exception is a bug of ours and keeps its traceback.

    Args:
      main: Takes the configuration, and with `arguments` also the list of arguments.
      config: The class of the configuration, a dataclass of concerns.
      arguments: What the arguments that are not flags are called, such as "IMAGE"; one or more are
        then required. By default the command takes flags only.
    """
    define_flags(config)
    flags.FLAGS.set_gnu_getopt()  # Flags may follow arguments.
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("warning: %(message)s"))

    def call(argv: list[str]) -> None:
        try:
            main(from_flags(config), *([argv[1:]] if arguments else ()))
            sys.stdout.flush()
        except KeyboardInterrupt as error:  # Its message, if any, says how to go on.
            print(*("interrupted", *error.args), file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:  # The reader of a pipe, such as `head`, has closed it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except UserError as error:
            sys.exit(f"error: {error}")

    app.run(call, flags_parser=functools.partial(_parse, config=config, arguments=arguments))


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
