"""`ssd-jax doctor`: from a location to a report, a picture, a cleaned copy and an exit code."""

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssd_jax.data.convert import convert
from ssd_jax.data.doctor import Diagnosis, clean, examine, write_json
from ssd_jax.data.findings import Finding, folder_findings
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.recordio import mixed_object_widths
from ssd_jax.errors import DataError
from ssd_jax.ops.anchors import default_boxes, paper_levels

# 2 is a mistake in the command, as everywhere.
ERRORS_FOUND = 3
REPORT, PICTURE = "doctor.json", "doctor.png"
SSD300_MAPS = tuple((side, side) for side in (38, 19, 10, 5, 3, 1))
EXAMPLES = 3


def run_doctor(
    location: str,
    *,
    split: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    against: str | None = None,
    against_split: Sequence[str] = (),
    fix: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    anchors: Float[np.ndarray, "A 4"] | None = None,
    max_objects: int | None = None,
    label_width: int | None = None,
    workers: int | None = None,
) -> int:
    """Examine a data set and print what was found: 0 without errors, ERRORS_FOUND with any.

    `against` is another set that must not share images with it; `against_split` alone is another
    split of the same location. `out` gets the report as JSON and the picture, `fix` a cleaned copy
    in the format that its name tells (see data/convert.py). Without `anchors` they are SSD300's.
    """
    split = (split,) if isinstance(split, str) else tuple(split)
    problems = Problems("skip")
    try:
        source = open_data(location, split=split, classes=classes, problems=problems)
    except DataError as error:
        if not problems.found:
            raise
        # Nothing usable is left: what was left out says why.
        source, findings = None, [Finding.of(each) for each in (*problems.found, error)]
        diagnosis = Diagnosis(tuple(findings), {}, ())
    else:
        other = ()
        if against or against_split:
            options = {"split": against_split, "problems": Problems("skip")}
            other = (open_data(against or location, **options),)
        if anchors is None:
            anchors = default_boxes(SSD300_MAPS, paper_levels(300, SSD300_MAPS))
        diagnosis = examine(
            source,
            other=other,
            anchors=anchors,
            max_objects=max_objects,
            label_width=label_width,
            workers=workers,
            show_progress=True,
        )
    diagnosis = diagnosis._replace(findings=diagnosis.findings + _file_findings(location))
    print(describe(diagnosis, location))
    if out is not None:
        write_json(diagnosis, pathlib.Path(out) / REPORT)
        print(f"All findings: {pathlib.Path(out) / REPORT}")
    if out is not None and source is not None:
        from ssd_jax.visualize_data import plot_data

        plot_data(source, pathlib.Path(out) / PICTURE, anchors=anchors, title=location)
        print(f"Classes, sizes and default boxes: {pathlib.Path(out) / PICTURE}")
    if fix is not None and source is not None:
        cleaned = clean(source, diagnosis)
        name = split[0].rpartition("/")[2] if len(split) == 1 else "train"
        convert(cleaned, fix, name=name)
        print(f"Cleaned copy: {fix}, {cleaned.describe()}")
    return ERRORS_FOUND if diagnosis.count("error") else 0


def _file_findings(location: str) -> tuple[Finding, ...]:
    """What the files of a local set say beyond the images that were opened."""
    path = pathlib.Path(location)
    if path.suffix == ".rec" and path.is_file():
        mixed = mixed_object_widths(path)
        return () if mixed is None else (Finding.of(mixed),)
    return tuple(folder_findings(path))


def describe(diagnosis: Diagnosis, location: str) -> str:
    """The report to read: the set, each code with examples, the verdict."""
    lines = [location]
    figures = diagnosis.statistics
    if figures:
        of_class = ", ".join(f"{name} {n:,}" for name, n in figures["objects_by_class"].items())
        lines += [
            f"  {figures['images']:,} images, {figures['images_without_objects']:,} without "
            f"objects; {figures['objects']:,} objects, {figures['difficult_objects']:,} difficult, "
            f"{figures['most_objects_in_an_image']:,} at most in an image (label width "
            f"{figures['label_width']:,})",
            f"  objects of each class: {of_class}",
        ]
        if figures["unreached_share"] is not None:
            share = f"{figures['unreached_share']:.1%}"
            lines.append(f"  {share} of the objects reach no IoU of 0.5 with a default box")
    by_code = collections.defaultdict(list)
    for finding in sorted(diagnosis.findings, key=lambda each: (each.severity, each.code)):
        by_code[finding.code].append(finding)
    for code, findings in by_code.items():
        lines += ["", f"{code} {findings[0].severity}, found {len(findings):,}"]
        lines += _examples(findings)
    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    lines += ["", f"Errors: {errors:,}. Warnings: {warnings:,}. Codes: docs/doctor.md"]
    return "\n".join(lines)


def _examples(findings: Sequence[Finding]) -> list[str]:
    """The commonest messages, each with the first place: of unknown classes, a histogram."""
    places = collections.defaultdict(list)
    for finding in findings:
        places[finding.message].append(finding.where)
    common = sorted(places.items(), key=lambda item: -len(item[1]))
    lines = []
    for message, where in common[:EXAMPLES]:
        more = f" and {len(where) - 1:,} more" if len(where) > 1 else ""
        lines.append(f"  {where[0]}{more}: {message}")
    rest = sum(len(where) for _, where in common[EXAMPLES:])
    return [*lines, f"  ... and {rest:,} more"] if rest else lines
