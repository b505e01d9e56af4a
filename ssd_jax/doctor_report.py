"""`ssd-jax doctor`: from a location to a report, a picture, a cleaned copy and an exit code."""

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssd_jax.data import codes
from ssd_jax.data.convert import check_destination, convert, describe_copy, split_name
from ssd_jax.data.doctor import Diagnosis, clean, examine, write_diagnosis
from ssd_jax.data.findings import Finding, folder_findings
from ssd_jax.data.open import open_data, open_parts
from ssd_jax.data.sources.base import Problems, Source
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
    label_width: int | None = None,
) -> int:
    """Examine a data set and print what was found: 0 without errors, ERRORS_FOUND with any.

    `against` is another set that must not share images with it; `against_split` alone is another
    split of the same location. `out` gets the report as JSON and the picture, `fix` a cleaned copy
    in the format that its name tells (see data/convert.py). Without `anchors` they are SSD300's.
    `label_width` is compared with the labels of a record file as they stand there, and with what
    MXNet's shortest labels would need in other formats.
    """
    split = (split,) if isinstance(split, str) else tuple(split)
    name = split_name(split)
    if fix is not None:
        check_destination(fix, name=name)
    problems = Problems("skip")
    words = {"split": split, "classes": classes, "problems": problems}
    try:
        source, too_wide = _open(location, label_width, **words)
    except DataError as error:
        if not problems.found and error.code != codes.BOXES_NORMALISED:
            raise
        # Nothing usable is left: what was left out says why.
        source, findings = None, [Finding.of(each) for each in (*problems.found, error)]
        diagnosis = Diagnosis(tuple(findings), {}, (), ())
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
            label_width=None if too_wide else label_width,
        )
        diagnosis = diagnosis._replace(findings=diagnosis.findings + too_wide)
    diagnosis = diagnosis._replace(findings=diagnosis.findings + _file_findings(location, split))
    print(describe(diagnosis, location))
    if out is not None:
        write_diagnosis(diagnosis, pathlib.Path(out) / REPORT)
        print(f"All findings: {pathlib.Path(out) / REPORT}")
    if out is not None and source is not None:
        from ssd_jax.visualize.data import plot_data

        plot_data(source, pathlib.Path(out) / PICTURE, anchors=anchors, title=location)
        print(f"Classes, sizes and default boxes: {pathlib.Path(out) / PICTURE}")
    if fix is not None:
        cleaned = None if source is None else clean(source, diagnosis)
        if cleaned:
            print(f"Cleaned copy: {describe_copy(cleaned, convert(cleaned, fix, name=name))}")
        else:
            print("No cleaned copy: all images are bad: nothing to write")
    return ERRORS_FOUND if diagnosis.count("error") else 0


def _open(
    location: str, label_width: int | None, *, problems: Problems, **words
) -> tuple[Source, tuple[Finding, ...]]:
    """The source, and the finding that a record file has wider labels, if it has."""
    try:
        return open_data(location, label_width=label_width, problems=problems, **words), ()
    except DataError as error:
        if error.code != codes.LABEL_WIDTH_SMALL:
            raise
        problems.found.clear()
        return open_data(location, problems=problems, **words), (Finding.of(error),)


def _file_findings(location: str, split: tuple[str, ...]) -> tuple[Finding, ...]:
    """What the files of local sets say beyond the images that were opened."""
    findings = []
    for place, _ in open_parts(location, split):
        path = pathlib.Path(place)
        if path.suffix == ".rec" and path.is_file():
            mixed = mixed_object_widths(path)
            findings += [] if mixed is None else [Finding.of(mixed)]
        else:
            findings += folder_findings(path)
    return tuple(findings)


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
            f"{figures['label_width']:,} or more)",
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
