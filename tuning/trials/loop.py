"""A sweep: runs trials until the flags' limits, then trains the best settings once more."""

import contextlib
import os

from pizza_steak.errors import UserError, fault_of_the_machine
from pizza_steak.text_width import printable
from tuning.configuration import SweepConfig
from tuning.trials import distribution, running, winner
from tuning.trials.plan import Plan
from tuning.trials.progress import Progress


def sweep(config: SweepConfig) -> str:
    """Starts or resumes the sweep in `sweep_dir`, then trains and tests the best settings.

    Returns:
      The results, as text.

    Raises:
      UserError: The user has to change something.
    """
    role = distribution.role()
    running.prepare()
    plan = Plan.make(config)
    if role == "worker":
        return running.work(plan, os.environ["KERASTUNER_TUNER_ID"], distribution.chief_address())
    with plan.folder.lock():
        plan.folder.start()
        # Workers may outlive a chief, but not a process that started them.
        oracle = plan.make_oracle(remote=bool(role))
        plan.folder.open_oracle(oracle)
        progress = Progress(plan, oracle)
        oracle.on_end = progress.report
        print(printable(plan.table(oracle), keep="\n"), flush=True)
        try:
            running.run_trials(plan, oracle, distributed=bool(role))
            progress.check_failures()
            best = winner.train(progress)
        except KeyboardInterrupt:
            progress.write()
            print(f"\n{progress.best_so_far}; to resume: {plan.command}", flush=True)
            raise
        except UserError:
            with contextlib.suppress(OSError):  # It may be about a full disk.
                progress.write()
            raise
        except OSError as error:
            if (fault := fault_of_the_machine(error)) is None:
                raise  # A bug.
            raise UserError(
                f"sweep_dir {plan.folder.path}: {fault}; when that is mended, resume: "
                f"{plan.command}"
            ) from error
        progress.write(best)
        return progress.summary(best)
