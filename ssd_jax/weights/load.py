"""Pretrained weights into our variables, with a report; any surprise is an error."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ssd_jax.errors import UserError
from ssd_jax.weights.layouts import find_layout
from ssd_jax.weights.maps import Input, NameMap, Target
from ssd_jax.weights.readers import WeightFile, read_weights

# Surprises of a kind that the report names one by one.
_LISTED = 10
# What to give as `reinitialise` to train on other classes.
HEADS = ("params/heads/*",)


class LoadReport(NamedTuple):
    """What became of every array; `unused` and `ignored` name the file's, the rest ours.

    `missing`, `unused` and `misshaped` are surprises. `kept` are paths of ours that were known not
    to be in the file and keep their values; `reinitialised` are mis-shaped ones that were allowed
    to; `ignored` are names of the file that were known not to be wanted. `metadata` is what the
    file or its host says, its sha256, and the input that the weights expect.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    reinitialised: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    misshaped: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def is_clean(self) -> bool:
        """Whether there was no surprise."""
        return not (self.missing or self.unused or self.misshaped)

    @property
    def facts(self) -> dict[str, str | int]:
        """The same in short, for a JSON file: counts instead of names."""
        counts = {
            name: len(value) for name, value in self._asdict().items() if isinstance(value, tuple)
        }
        return {"source": self.source, "layout": self.layout, **self.metadata, **counts}

    def __str__(self) -> str:
        lines = [f"weights from {self.source} ({self.layout})"]
        for word, paths in (
            ("loaded", self.loaded),
            ("kept as they were", self.kept),
            ("ignored in the file", self.ignored),
        ):
            if paths:
                lines.append(f"  {word}: {len(paths)}, {paths[0]} to {paths[-1]}")
        for word, paths in (
            ("RE-INITIALISED, as asked", self.reinitialised),
            ("MISSING in the file", self.missing),
            ("UNUSED in the file", self.unused),
            ("MIS-SHAPED", self.misshaped),
        ):
            if paths:
                lines.append(f"  {word}: {len(paths)}")
                lines += [f"    {path}" for path in paths[:_LISTED]]
            if len(paths) > _LISTED:
                lines.append(f"    and {len(paths) - _LISTED} more")
        lines += [f"  {word}: {text}" for word, text in sorted(self.metadata.items())]
        return "\n".join(lines)


def load_weights(
    variables: dict,
    source: str | os.PathLike | WeightFile,
    *,
    backbone: str | None = None,
    name_map: NameMap | None = None,
    reinitialise: Sequence[str] = (),
    network_sees: Input | None = None,
) -> tuple[dict, LoadReport]:
    """Put a weight file into `variables`; give the new variables, float32, and the report.

    `source` is as in `read_weights`, or what it gave. Leaves of `variables` that the file does not
    fill are passed on; only the shapes of the others matter. Without `name_map` the layout is told
    from the names. Of networks with the same parameters, `backbone` makes sure that it is the one
    that the file was trained for.

    Paths that match the patterns `reinitialise` (as in `maps`) keep the values of `variables` where
    the shapes differ. `network_sees` is the input of the network; if the file was trained on
    another the report says so. Raises UserError, with the whole report, on anything that is missing
    or unused and the map does not expect, and on every other shape.
    """
    file = source if isinstance(source, WeightFile) else read_weights(source)
    name_map = name_map or find_layout(file.tensors)
    _check_backbone(file, name_map, backbone)
    first_values = flatten_dict(variables, sep="/")
    ours = {path: leaf.shape for path, leaf in first_values.items()}
    arrays, misshaped, extra = {}, {}, []
    for name, tensor in file.tensors.items():
        target = name_map.targets.get(name)
        if target is None or target.path not in ours or target.path in arrays:
            extra.append(name)
            continue
        array = _fitted(target, tensor, ours[target.path])
        if isinstance(array, str):
            misshaped[target.path] = array
        else:
            arrays[target.path] = array
    for name in name_map.biases.keys() & set(extra):
        mean = arrays.get(name_map.biases[name])
        if mean is not None and mean.shape == file.tensors[name].shape:
            mean -= file.tensors[name]
            extra.remove(name)

    reinitialised, wrong = _expected_or_not(misshaped, reinitialise)
    absent = ours.keys() - arrays.keys() - misshaped.keys()
    kept, missing = _expected_or_not(absent, name_map.not_in_file)
    ignored, unused = _expected_or_not(extra, name_map.not_for_us)
    report = LoadReport(
        source=file.source,
        layout=name_map.name,
        loaded=tuple(sorted(arrays)),
        kept=kept,
        reinitialised=tuple(f"{path}: {misshaped[path]}" for path in reinitialised),
        ignored=ignored,
        missing=missing,
        unused=unused,
        misshaped=tuple(f"{path}: {misshaped[path]}" for path in wrong),
        metadata={
            **file.metadata,
            **_about_input(name_map.expects, network_sees),
        },
    )
    if not report.is_clean:
        raise UserError(f"{report}\n{_advice(report)}")
    return variables | unflatten_dict(first_values | arrays, sep="/"), report


def _about_input(expected: Input | str, seen: Input | None) -> dict[str, str]:
    told = {"expects": str(expected)} if expected else {}
    if seen and isinstance(expected, Input) and not expected.is_like(seen):
        told["expects ANOTHER INPUT than the network is given"] = str(seen)
    return told


def _fitted(target: Target, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | str:
    """Our own copy of the tensor, or what is wrong with it."""
    try:
        array = target.transform(tensor)
    except (ValueError, IndexError):  # it has not the rank of what it is called
        array = tensor
    if array.shape != shape:
        return f"{array.shape} in the file, {shape} in the model"
    # bfloat16 is no NumPy type of its own, so np.floating does not cover it.
    if array.dtype.name != "bfloat16" and not np.issubdtype(array.dtype, np.floating):
        return f"{array.dtype} in the file, float32 in the model"
    return np.array(array, np.float32, order="C")


def _check_backbone(file: WeightFile, name_map: NameMap, backbone: str | None) -> None:
    if backbone and name_map.backbones and backbone not in name_map.backbones:
        raise UserError(
            f"{file.source}: got weights of {name_map.name}, expected weights for the backbone "
            f"{backbone}. Take another file, or the backbone {' or '.join(name_map.backbones)}."
        )


def _expected_or_not(
    names: Iterable[str], patterns: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    patterns = tuple(patterns)
    expected = {
        name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    return tuple(sorted(expected)), tuple(sorted(set(names) - expected))


def _advice(report: LoadReport) -> str:
    advice = []
    if any(path.startswith("params/heads/") for path in report.misshaped):
        advice.append(
            "The heads of the file are for other classes or anchors. To begin with new ones, train "
            f"with --config.weights.reinitialise='{HEADS[0]}', or import with `ssd-jax weights "
            "import --reinit-heads`."
        )
    if any(not path.startswith("params/heads/") for path in report.misshaped):
        advice.append(
            "A shape that differs in channels only is another width: published weights fit a "
            "model of width 1.0."
        )
    if report.missing:
        advice.append("Take a complete file.")
    if report.unused:
        advice.append("Take the file that fits the model.")
    return "Nothing was loaded. " + " ".join(advice)
