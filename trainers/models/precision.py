"""--precision=fastest: times some training steps in float32 and in half precision."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from trainers.models.steps import Steps

_ROUNDS = 3
# Seconds of a round at least, and the most steps for them.
_SECONDS, _MOST_STEPS = 0.3, 100


def fastest(
    candidates: Sequence[str],
    trained_in: Callable[[str], tuple[Any, Any]],
    from_chief: Callable[[Callable[[], Any]], Any],
) -> tuple[str, str]:
    """Returns the fastest dtype policy for a training step, and why.

    All candidates are compiled and traced first; then they take turns, because the speed of a
    machine drifts.

    Args:
      candidates: The dtype policies.
      trained_in: Returns a compiled model of a policy, and a dataset that repeats a batch for it.
      from_chief: `Devices.from_chief`: all processes of a cluster make the same steps.
    """
    if len(candidates) == 1:
        return candidates[0], "no other is fast on these devices"
    timed = [_timed(*trained_in(policy)) for policy in candidates]
    first = max(timed[0](1), 1e-6)
    count = from_chief(lambda: min(int(_SECONDS / first) + 1, _MOST_STEPS))
    rounds = [[run(count) for run in timed] for _ in range(_ROUNDS)]
    seconds = [statistics.median(times) for times in zip(*rounds, strict=True)]
    best = min(range(len(candidates)), key=seconds.__getitem__)
    other = max(range(len(candidates)), key=seconds.__getitem__)
    times = seconds[other] / seconds[best]
    reason = f"measured: {times:.2f} times as fast as {candidates[other]}"
    return from_chief(lambda: (candidates[best], reason))


def _timed(model: Any, batches: Any) -> Callable[[int], float]:
    """Returns a function that makes some steps, and returns their seconds."""
    steps, iterator = Steps(model, model.train_step), iter(batches)

    def run(count: int) -> float:
        start = time.perf_counter()
        for value in steps(iterator, count).values():
            float(value)  # It waits for a GPU.
        return time.perf_counter() - start

    run(1)  # It traces and compiles.
    return run
