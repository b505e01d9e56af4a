"""Pretrained weights into our variables, with a report; any mismatch is an error."""

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ssd_jax.errors import UserError
from ssd_jax.weights.layouts import find_layout
from ssd_jax.weights.maps import Input, NameMap, Target
from ssd_jax.weights.readers import WeightFile, read_weights

# The number of mismatches of each kind that the report lists.
_LISTED = 10
# The value of `reinitialise` for training on other classes.
HEADS = ("params/heads/*",)


class LoadReport(NamedTuple):
    """What happened to each array; `unused` and `ignored` are names in the file, the rest paths.

    `missing`, `unused` and `misshaped` are mismatches. `kept` are our paths that were expected not
    to be in the file and keep their values; `reinitialised` are paths with another shape that were
    allowed to keep their new values; `ignored` are names in the file that were expected not to be
    used. `metadata` has the details from the file or its host, its sha256, and the input that the
    weights expect.
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
        """Whether there was no mismatch."""
        return not (self.missing or self.unused or self.misshaped)

    @property
    def has_new_heads(self) -> bool:
        """Whether heads are not from the file, so that no detector is trained yet."""
        return any(path.startswith("params/heads/") for path in (*self.kept, *self.reinitialised))

    @property
    def facts(self) -> dict[str, str | int]:
        """A short form of the report for a JSON file, with counts instead of names."""
        counts = {
            name: len(value) for name, value in self._asdict().items() if isinstance(value, tuple)
        }
        return {"source": self.source, "layout": self.layout, **self.metadata, **counts}

    def __str__(self) -> str:
        lines = [f"weights from {self.source} ({self.layout})"]
        for kind, paths in (
            ("loaded", self.loaded),
            ("kept as they were", self.kept),
            ("ignored in the file", self.ignored),
        ):
            if paths:
                lines.append(f"  {kind}: {len(paths)}, {paths[0]} to {paths[-1]}")
        for kind, paths in (
            ("RE-INITIALISED, as requested", self.reinitialised),
            ("MISSING in the file", self.missing),
            ("UNUSED in the file", self.unused),
            ("MIS-SHAPED", self.misshaped),
        ):
            if paths:
                lines.append(f"  {kind}: {len(paths)}")
                lines += [f"    {path}" for path in paths[:_LISTED]]
            if len(paths) > _LISTED:
                lines.append(f"    and {len(paths) - _LISTED} more")
        lines += [f"  {key}: {text}" for key, text in sorted(self.metadata.items())]
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
    """Load a weight file into `variables`; returns the new variables, float32, and the report.

    `source` is as in `read_weights`, or its result. Leaves of `variables` that the file does not
    fill are returned unchanged; of the others only the shapes matter. Without `name_map` the layout
    is recognised from the names. `backbone` tells networks with the same parameters apart: it must
    be one that the file was trained for.

    Paths that match the patterns `reinitialise` (as in `maps`) keep the values of `variables` if
    the shapes differ. `network_sees` is the input of the network; if the file was trained on
    another input the report says so. Raises UserError, with the whole report, for anything missing
    or unused that the map does not expect, for every other difference in shape, and for numbers
    that are not finite.
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
    _check_finite(file, arrays)
    return variables | unflatten_dict(first_values | arrays, sep="/"), report


def _about_input(expected: Input | str, seen: Input | None) -> dict[str, str]:
    lines = {"expects": str(expected)} if expected else {}
    if seen and isinstance(expected, Input) and not expected.is_like(seen):
        lines["expects ANOTHER INPUT than the network is given"] = str(seen)
    return lines


def _fitted(target: Target, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | str:
    """A copy of the tensor in our form, or a text that says what is wrong with it."""
    try:
        array = target.transform(tensor)
    except (ValueError, IndexError, TypeError):  # its rank is not the one that belongs to its name
        array = tensor
    if array.shape != shape:
        return f"{array.shape} in the file, {shape} in the model"
    # bfloat16 is not one of NumPy's own types, so np.floating does not include it.
    if array.dtype.name != "bfloat16" and not np.issubdtype(array.dtype, np.floating):
        return f"{array.dtype} in the file, float32 in the model"
    return np.array(array, np.float32, order="C")


def _check_finite(file: WeightFile, arrays: Mapping[str, np.ndarray]) -> None:
    for path, array in sorted(arrays.items()):
        # A sum needs no second array; in float64 it does not overflow.
        with np.errstate(invalid="ignore"):
            is_finite = np.isfinite(array.sum(dtype=np.float64))
        if not is_finite:
            raise UserError(
                f"{file.source}: {path} has NaN or infinite values, expected finite ones. Nothing "
                "was loaded. The training that wrote it has diverged, or the file is damaged; use "
                "another checkpoint."
            )


def _check_backbone(file: WeightFile, name_map: NameMap, backbone: str | None) -> None:
    if backbone and name_map.backbones and backbone not in name_map.backbones:
        raise UserError(
            f"{file.source}: got weights of {name_map.name}, expected weights for the backbone "
            f"{backbone}. Use another file, or the backbone {' or '.join(name_map.backbones)}."
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
            "The heads of the file are for other classes or anchors. To start with new ones, train "
            f"with --config.weights.reinitialise='{HEADS[0]}', or import with `ssd-jax weights "
            "import --reinit-heads`."
        )
    if any(not path.startswith("params/heads/") for path in report.misshaped):
        advice.append(
            "If the shapes differ only in channels, so do the widths: published weights fit a "
            "model of width 1.0."
        )
    if report.missing:
        advice.append("Use a complete file.")
    if report.unused:
        advice.append("Use the file that fits the model.")
    return "Nothing was loaded. " + " ".join(advice)
