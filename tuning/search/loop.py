"""The search: runs trials until the flags' limits, then trains the best settings once more."""

import os

from pizza_steak.errors import UserError
from tuning.configuration import SweepConfig
from tuning.search import distribution, oracles, running, winner
from tuning.search.plan import Plan
from tuning.search.progress import Progress


def search(config: SweepConfig) -> str:
    """Starts or resumes the search in `sweep_dir`, then trains and tests the best settings.

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
        oracle = oracles.make(config, plan.space, remote=bool(role))
        plan.folder.open_oracle(oracle)
        progress = Progress(plan, oracle)
        oracle.on_end = progress.report
        print(plan.table(oracle), flush=True)
        try:
            running.run_trials(plan, oracle, distributed=bool(role))
            progress.check_failures()
            best = winner.train(progress)
        except (KeyboardInterrupt, UserError) as error:
            progress.write()
            if isinstance(error, KeyboardInterrupt):
                print(f"\n{progress.best_so_far}; run the same command to resume", flush=True)
            raise
        progress.write(best)
        return progress.summary(best)
