"""Pretrained weights into our variables, with a report; any surprise is an error."""

import fnmatch
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax

from ssd_jax.errors import UserError
from ssd_jax.weights.maps import NameMap, find_map
from ssd_jax.weights.readers import read_safetensors

# Surprises of a kind that the report names one by one.
_LISTED = 10


class LoadReport(NamedTuple):
    """What became of every array; `unused` and `ignored` name the file's, the rest ours.

    `missing`, `unused` and `misshaped` are surprises. `kept` are paths of ours that were known not
    to be in the file and keep their values; `ignored` are its names that were known not to be
    wanted. `metadata` is the file's own, for example the input that the weights expect.
    """

    path: str
    layout: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    misshaped: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def is_clean(self) -> bool:
        """Whether there was no surprise."""
        return not (self.missing or self.unused or self.misshaped)

    def __str__(self) -> str:
        lines = [f"weights from {self.path} ({self.layout})"]
        for word, paths in (
            ("loaded", self.loaded),
            ("kept as they were", self.kept),
            ("ignored in the file", self.ignored),
        ):
            if paths:
                lines.append(f"  {word}: {len(paths)}, {paths[0]} to {paths[-1]}")
        for word, surprises in (
            ("MISSING in the file", self.missing),
            ("UNUSED in the file", self.unused),
            ("MIS-SHAPED", self.misshaped),
        ):
            if surprises:
                lines.append(f"  {word}: {len(surprises)}")
                lines += [f"    {surprise}" for surprise in surprises[:_LISTED]]
            if len(surprises) > _LISTED:
                lines.append(f"    and {len(surprises) - _LISTED} more")
        lines += [f"  {word}: {text}" for word, text in sorted(self.metadata.items())]
        return "\n".join(lines)


def load_weights(
    variables: dict,
    path: str | os.PathLike,
    *,
    name_map: NameMap | None = None,
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
) -> tuple[dict, LoadReport]:
    """Put a safetensors file into `variables`; give the new variables and the report.

    Without `name_map` the layout is told from the names. The patterns (as in `maps`) add to those
    that the map itself expects: `allow_missing` to our paths that the file may lack,
    `allow_unused` to names of the file that we may leave. Raises UserError, with the whole report,
    on anything else that is missing or unused and on every shape that differs.
    """
    file = read_safetensors(path)
    name_map = name_map or find_map(file.tensors)
    ours = {_joined(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    arrays, misshaped, extra = {}, {}, []
    for name, tensor in file.tensors.items():
        target = name_map.targets.get(name)
        if target is None or target.path not in ours:
            extra.append(name)
            continue
        array, expected = target.transform(tensor), ours[target.path].shape
        if array.shape == expected:
            arrays[target.path] = array
        else:
            misshaped[target.path] = f"{array.shape} in the file, {expected} in the model"
    absent = ours.keys() - arrays.keys() - misshaped.keys()
    kept, missing = _expected_or_not(absent, (*name_map.not_in_file, *allow_missing))
    ignored, unused = _expected_or_not(extra, (*name_map.not_for_us, *allow_unused))
    report = LoadReport(
        path=os.fspath(path),
        layout=name_map.name,
        loaded=tuple(sorted(arrays)),
        kept=kept,
        ignored=ignored,
        missing=missing,
        unused=unused,
        misshaped=tuple(f"{path}: {problem}" for path, problem in sorted(misshaped.items())),
        metadata=file.metadata,
    )
    if not report.is_clean:
        raise UserError(f"{report}\n{_advice(report)}")
    loaded = jax.tree_util.tree_map_with_path(
        lambda path, leaf: arrays.get(_joined(path), leaf), variables
    )
    return loaded, report


def _joined(path: tuple) -> str:
    return "/".join(entry.key for entry in path)


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
    if report.misshaped:
        advice.append(
            "A shape that differs in channels only is another width: published weights fit a "
            "model of width 1.0."
        )
    if report.missing:
        advice.append("Take a complete file.")
    if report.unused:
        advice.append("Take the file that fits the model.")
    return "Nothing was loaded. " + " ".join(advice)
