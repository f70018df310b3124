"""A sweep's trials: how they are chosen, run, scored and kept.

The states of a trial, which Keras Tuner's oracle keeps in oracle/trial_<id>/trial.json. Only the
chief, which has the oracle, writes them, with the oracle locked:

| from | to | who moves it, and when |
|---|---|---|
| (none) | RUNNING | `create_trial`: a worker asks, and there is a point or a final to try |
| RUNNING | RUNNING, of nobody | `take_back`: its worker is silent or dead, or the sweep died |
| RUNNING, of nobody | RUNNING | `create_trial`: the next worker that asks gets it |
| RUNNING | COMPLETED | `end_trial`: its worker reports a score that is a number |
| RUNNING | FAILED | `end_trial`: its worker reports a failure, or a score that is no number |

COMPLETED and FAILED are final: whatever a worker that counted as dead reports later is ignored.
IDLE and STOPPED are no states of a trial; they tell a worker that asks to wait or to end. A
promoted trial of hyperband is a new trial, which continues the run of an earlier one.

What a trial's process has done is in its run directory (how far it has come) and in a file beside
it (what came of it, `execution.Execution.outcome`). That file is written once, by the trial's
process, or by its worker if the process died or took too long, with the run directory locked. So a
trial that two workers have got is trained once.
"""
