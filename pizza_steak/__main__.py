"""Trains image classifiers on folders of images, and uses them.

pizza-steak fit --flagfile=pretrained.flags --archive=~/holiday_pictures
pizza-steak fit --help
"""

import ast
import difflib
import os
import pathlib
import runpy
import sys

from pizza_steak import __version__, command

# The modules that `python -m` runs, in the order of their use.
COMMANDS = {
    "inspect": "pizza_steak.inspect",
    "fit": "trainers.fit",
    "evaluate": "trainers.evaluate",
    "predict": "trainers.predict",
    "export": "trainers.export",
    "report": "trainers.report",
    "average": "trainers.average",
    "learning-rate": "tuning.learning_rate",
    "sweep": "tuning.sweep",
    "chapter": "trainers.chapter",
    "benchmark": "trainers.benchmark",
    "data-service": "trainers.data_service",
    "prepared": "pizza_steak.prepared",
}


def main() -> None:
    """Runs the command that the first argument names, or lists the commands."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[1:] = arguments
        # As for `python -m`: modules of --model and --callback may be in the current folder.
        sys.path.insert(0, os.getcwd())
        runpy.run_module(COMMANDS[name], run_name="__main__", alter_sys=True)
    elif name in ("-h", "--help", "--helpfull", "help"):
        command.show(listing())
    elif name == "--version":
        command.show(f"pizza-steak {__version__}")
    else:
        alike = difflib.get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
        meant = f"did you mean {alike[0]}? " if alike else ""
        print(f"error: unknown command {name!r}; {meant}--help lists the commands", file=sys.stderr)
        sys.exit(2)


def listing() -> str:
    """Returns what this module does, and a line for each command."""
    lines = [f"  {name:<14} {_purpose(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            __doc__.strip(),
            "\nCommands:",
            *lines,
            "\npizza-steak COMMAND --help shows the flags of a command; --version the version.",
            "Each is a module too: python -m trainers.fit is pizza-steak fit.",
        ]
    )


def _purpose(module: str) -> str:
    """Returns the first line of the docstring of a module, which is not imported."""
    path = pathlib.Path(__file__).parents[1].joinpath(*module.split("."))
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
    return (doc or "").partition("\n")[0]


if __name__ == "__main__":
    main()
