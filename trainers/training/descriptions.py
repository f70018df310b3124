"""The table that is printed before a training, and environment.json."""

import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import textwrap
from typing import Any

import numpy as np

from trainers import data as run_data
from trainers.configuration import DevicesConfig, OptimisationConfig
from trainers.models import optimizers
from trainers.runs import run_directory
from trainers.setup import Setup

_NAMED = 6
_FEW_STEPS = 20
_WIDTH, _INDENT = 80, 12


def plan_table(setup: Setup, run: run_directory.Run) -> str:
    """Returns the table of what will be trained, with rows for what is not the default."""
    config, data = setup.config, setup.data
    optimisation, batch_size = config.optimisation, config.data.batch_size
    schedule, replica_count = optimisation.learning_rate_schedule, setup.chosen.replicas
    scaled = optimisation.scale_learning_rate == "linear"
    rates = [
        optimizers.learning_rate(optimisation, stage.learning_rate, replica_count)
        for stage in setup.stages
    ]
    rows = []
    for purpose, split in data.splits.items():
        counts = data.counts(purpose)
        if len(counts) <= _NAMED:
            by_class = ", ".join(
                f"{name} {n:,}" for name, n in zip(data.classes, counts, strict=True)
            )
        else:
            by_class = f"{len(counts)} classes of {counts.min():,} to {counts.max():,}"
        steps = _steps(counts.sum(), batch_size)
        rows.append((purpose, f"{split}: {counts.sum():,} images ({by_class}), {steps}"))
    rows += [
        ("dataset", "" if config.data.archive else config.data.dataset),
        ("archive", config.data.archive and short_path(pathlib.Path(config.data.archive))),
        ("left out", ", ".join(f"{n:,} {kind}" for kind, n in _left_out(data).items())),
        *(("caution", text) for text in (*split_cautions(data), _few_steps(data, batch_size))),
        ("augmented", _augmentation_text(setup)),
        ("model", _model_text(setup)),
        ("features", _features_text(setup)),
        (
            "training",
            f"{optimisation.optimizer}, "
            f"learning rate {rates[0]:g}"
            + (f" ({optimisation.learning_rate:g} a replica)" if scaled else "")
            + "".join(f", then {rate:g}" for rate in rates[1:])
            + (f" ({schedule})" if schedule != "constant" else "")
            + _warmup_text(optimisation.warmup_epochs)
            + f", batch size {batch_size}"
            + (f" ({_shares(batch_size, replica_count)} a replica)" if replica_count > 1 else "")
            + f", {optimisation.epochs} epoch{'s' * (optimisation.epochs != 1)}"
            + _options_text(optimisation),
        ),
        *_device_rows(setup),
        ("run", short_path(run.path) + (f", {_start_text(run)}" if run.resumed else "")),
    ]
    return "\n".join(_wrapped(name, text) for name, text in rows if text)


def short_path(path: pathlib.Path) -> str:
    """Returns a path as it is typed in the current folder."""
    path = path.expanduser().absolute()
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _wrapped(name: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"{name:<{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _device_rows(setup: Setup) -> list[tuple[str, str]]:
    """Returns the device, and how it computes where that was asked for or is not usual."""
    asked, chosen, default = setup.config.devices, setup.chosen, DevicesConfig()
    told = {
        "devices": True,
        "oneDNN": chosen.onednn == "off",
        "strategy": chosen.replicas > 1
        or (asked.strategy, asked.devices) != (default.strategy, default.devices),
        "precision": chosen.precision != "float32"
        or asked.precision != default.precision
        or "fastest" in chosen.precision_reason,
        "jit_compile": chosen.on_gpu or asked.jit_compile != default.jit_compile,
    }
    return [(name, text) for name, text in chosen.topics().items() if told[name]]


def _start_text(run: run_directory.Run) -> str:
    start = run.progress
    return f"from epoch {start.epochs + 1}" + (f", after step {start.step}" if start.step else "")


def _shares(batch_size: int, replica_count: int) -> str:
    """Returns the images per batch and replica; the last replica may get fewer."""
    share = math.ceil(batch_size / replica_count)
    return f"{share}" if share * replica_count == batch_size else f"up to {share}"


def _model_text(setup: Setup) -> str:
    """Returns the network, and which part of it is trained when."""
    network, stages = setup.network, setup.stages
    text = f"{network.model.name}, {network.model.count_params():,} parameters"
    parts = [_trained_text(stage.trainable) for stage in stages]
    if parts == ["all"]:
        return text
    if len(parts) == 1:
        return f"{text}, {parts[0]} trained"
    count = stages[0].end
    return f"{text}, {parts[0]} trained for {count} epoch{'s' * (count != 1)}, then {parts[1]}"


def _trained_text(trainable: float) -> str:
    words = {0: "the head", 1: "the head and the last layer before it", math.inf: "all"}
    return words.get(trainable, f"the head and the last {trainable:g} layers before it")


def _features_text(setup: Setup) -> str:
    """Returns how the head gets its features, while the backbone is frozen."""
    frozen = [stage for stage in setup.stages if not stage.trainable]
    if not frozen:
        return ""
    if not setup.has_fixed_features(frozen[0]):
        hint = "; --augmentation_cycle=10 keeps those of 10 versions of each image"
        return "computed in each step" + (hint if setup.could_fix_features(frozen[0]) else "")
    cycle = setup.augmentation.cycle if setup.augmentation else None
    return "computed once and kept" + (f", of {cycle} versions of each image" if cycle else "")


def _warmup_text(epochs: float) -> str:
    return f" after a warm-up of {epochs:g} epoch{'s' * (epochs != 1)}" if epochs else ""


def _options_text(config: OptimisationConfig) -> str:
    """Returns the options of the training step that are on."""
    named = ("clip_norm", "ema", "mixup", "cutmix")
    options = "".join(
        f", {name} {value:g}" for name in named if (value := getattr(config, name)) is not None
    )
    return options + (f", seed {config.seed}" if config.seed != OptimisationConfig().seed else "")


def _augmentation_text(setup: Setup) -> str:
    """Returns the augmentation flags that differ from their defaults, and where it runs."""
    config, augmentation = setup.config.augmentation, setup.augmentation
    changed = [
        f"{field.name} {value}"
        for field in dataclasses.fields(config)
        if field.name != "augment_on" and (value := getattr(config, field.name)) != field.default
    ]
    if changed and augmentation and augmentation.seeded:
        on_host = augmentation.on_host and not setup.config.data.data_on_device
        if not on_host or config.augment_on != "auto":
            changed.append(f"on the {'host' if on_host else 'device'}")
    return ", ".join(changed)


def split_cautions(data: run_data.Data) -> list[str]:
    """Returns warnings about the splits: shared images, and classes without images."""
    lines = []
    for pair, count in data.overlaps.items():
        one, other = pair.split(" in ")
        lines.append(f"{count:,} of {len(data.rows[one]):,} {one} images are {other} images too")
    for purpose in data.splits:
        absent = [data.classes[label] for label in np.flatnonzero(data.counts(purpose) == 0)]
        if absent:
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            lines.append(f"no {purpose} images of {', '.join(absent[:_NAMED])}{more}")
    return lines


def _few_steps(data: run_data.Data, batch_size: int) -> str:
    images = len(data.rows["train"])
    if images > (_FEW_STEPS - 1) * batch_size:
        return ""
    return (
        f"an epoch has only {_steps(images, batch_size)}: pass more --epochs, a smaller "
        "--batch_size, or augmentation such as --horizontal_flip"
    )


def _steps(images: int, batch_size: int) -> str:
    steps = math.ceil(images / batch_size)
    return f"{steps:,} step{'s' * (steps != 1)}"


def _left_out(data: run_data.Data) -> dict[str, int]:
    """Returns the numbers of files that are not examples, by kind, and of unreadable images."""
    archive = getattr(data.records.builder.builder_config, "archive", None)
    kinds = dict(archive.left_out) if archive else {}
    if data.pictures.bad:
        kinds["cannot be decoded"] = len(data.pictures.bad)
    return kinds


def _backbone(setup: Setup) -> dict[str, str] | None:
    network = setup.network
    return {"digest": network.digest, **network.origin} if network.digest else None


def environment(setup: Setup) -> dict[str, Any]:
    """Returns the content of environment.json: versions, hardware and data."""
    data = setup.data
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy")
    splits = {
        purpose: {
            "text": text,
            "images": len(data.rows[purpose]),
            "fingerprint": data.fingerprint(purpose),
        }
        for purpose, text in data.splits.items()
    }
    builder = data.records.builder
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in packages},
        **dataclasses.asdict(setup.chosen),
        "backbone": _backbone(setup),
        "batch_size": setup.config.data.batch_size,
        "dataset": builder.info.full_name,
        "fingerprint": data.records.fingerprint,
        "splits": splits,
        "overlaps": data.overlaps,
        "left_out": _left_out(data),
        "bad_images": {
            data.records.filenames[row]: reason for row, reason in data.pictures.bad.items()
        },
    }
