"""Times the features that a frozen backbone gives for all images, against Keras's predict.

PYTHONPATH=tests python tests/measurements/features.py --flagfile=pretrained.flags \\
    --model=efficientnet_lite0.keras --archive=food4.zip

Keras's predict gets the same images as one array in memory. The two take turns.
"""

import resource
import statistics
import sys
import time

from small_runs import parse_flags

from pizza_steak.tensorflow_import import import_tensorflow

_TURNS = 3


def main(argv):
    tf = import_tensorflow()
    import numpy as np

    from trainers import setup
    from trainers.training import kept_features

    ready = setup.prepare(parse_flags(*argv))
    network, rows = ready.network.features, np.arange(len(ready.data.records.labels))
    network.compile(jit_compile=ready.chosen.jit_compile)
    for _ in kept_features._computed(ready, rows, None):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{len(rows):,} images, peak memory {peak:,} MiB")
    images = ready.data.pictures.gather(tf.constant(rows)).numpy()
    timed = {
        "kept features": lambda: [*kept_features._computed(ready, rows, None)],
        "predict": lambda: network.predict(images, batch_size=kept_features._BATCH_SIZE, verbose=0),
    }
    seconds = {name: [] for name in timed}
    for _ in range(_TURNS):
        for name, compute in timed.items():
            start, cpu = time.perf_counter(), time.process_time()
            compute()
            seconds[name].append((time.perf_counter() - start, time.process_time() - cpu))
    for name, turns in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*turns, strict=True))
        print(f"{name}: {wall:.1f} s, {cpu:.1f} CPU s, {len(rows) / wall:.0f} images/s")


if __name__ == "__main__":
    main(sys.argv[1:])
