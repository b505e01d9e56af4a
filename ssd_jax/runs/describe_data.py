"""What the log says about the data of a run, and the commands that show more."""

import collections
import shlex
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from ssd_jax.data import codes
from ssd_jax.data.open import split_of_role
from ssd_jax.data.sources.base import Source
from ssd_jax.literals import write_names

# If so large a share of a split cannot be used, it is probably read the wrong way.
_MUCH_LEFT_OUT = 0.1


def describe_data(config: ConfigDict, sources: Mapping[str, Source]) -> list[str]:
    """Lines for the log: what each split holds, and what is likely to be a mistake in them."""
    lines = [f"{split + ':':6} {source.describe()}" for split, source in sources.items()]
    for split, source in sources.items():
        lines += _describe_left_out(split, source)
        warnings = [
            # A single finding may be about many images: "1 x SSD178 (images without objects)".
            (f"{count:,} x " if count > 1 else "") + f"{code} ({codes.WARNINGS[code]})"
            for code, count in (source.findings or {}).items()
            if code in codes.WARNINGS
        ]
        if warnings:
            line = f"{split}: doctor warnings: {', '.join(warnings)}"
            if config.data[split].root:
                classes = config.data.classes if split == "train" else source.classes
                line += f"; `{doctor_command(config, split, classes)}` shows them"
            lines.append(line)
    trained_on = set(sources["train"].digests or ())
    for split, source in sources.items():
        leaks = sum(digest in trained_on for digest in source.digests or ())
        if split != "train" and leaks:
            line = (
                f"warning: {leaks:,} of the {len(source):,} images of {split} are also in train, "
                f"byte for byte, so the metrics on {split} are too optimistic"
            )
            if config.data[split].root and config.data.train.root:
                line += f". `{_against_training(config, split)}` names them"
            lines.append(line)
    if config.data.canvas < config.model.image_size:
        lines.append(
            f"images are scaled down to data.canvas = {config.data.canvas} px and then up again to "
            f"model.image_size = {config.model.image_size}; a canvas of at least that size would "
            "keep the detail that the network can see"
        )
    return lines


def doctor_command(config: ConfigDict, split: str, classes: Sequence[str]) -> str:
    """The command that shows all mistakes of a split; `classes` are those that it must have."""
    place = config.data[split]
    arguments = ["ssd-jax", "doctor", place.root]
    splits = split_of_role(place.root, place.image_sets, split)
    for option, names in (("--split", splits), ("--classes", classes)):
        arguments += [option, write_names(names)] if names else []
    return shlex.join(arguments)


def _describe_left_out(split: str, source: Source) -> list[str]:
    counts = collections.Counter(source.problems.counts)
    if not counts:
        return []
    lost = sum(counts[code] for code in counts if code not in codes.KEEPS_THE_IMAGE)
    # An image whose name is misspelt in its annotation is counted under both codes.
    lost -= min(counts[codes.IMAGE_MISSING], counts[codes.ANNOTATION_MISSING])
    share = lost / (lost + len(source))
    warning = "warning: " if share >= _MUCH_LEFT_OUT else ""
    return [
        f"{warning}{split}: {lost:,} of {lost + len(source):,} images are left out ({share:.1%})",
        *(f"{split}: {example}" for example in source.problems.examples()),
    ]


def _against_training(config: ConfigDict, split: str) -> str:
    """The command that lists the images that a split shares with the training split."""
    train = config.data.train
    arguments = ["--against", train.root]
    splits = split_of_role(train.root, train.image_sets, "train")
    arguments += ["--against-split", write_names(splits)] if splits else []
    return f"{doctor_command(config, split, config.data.classes)} {shlex.join(arguments)}"
