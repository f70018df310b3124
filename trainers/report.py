"""Writes one HTML page about several runs, to compare them.

python -m trainers.report --runs='runs/*' --output=report.html
"""

from trainers import command
from trainers.configuration import ReportConfig


def main(config: ReportConfig) -> None:
    from trainers.pages import run_report  # Imports Matplotlib, which --help must not wait for.

    print(run_report.write(config))


if __name__ == "__main__":
    command.run(main, ReportConfig)
