"""Writes one HTML page that compares several runs.

python -m trainers.report --runs='runs/*' --output=report.html
"""

from trainers import command
from trainers.configuration import ReportConfig


def main(config: ReportConfig) -> None:
    # Imports Matplotlib, for which --help must not wait.
    from trainers.pages import run_report

    command.show(run_report.write(config))


if __name__ == "__main__":
    command.run(main, ReportConfig, gpus=False)
