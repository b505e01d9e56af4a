"""`ssd-jax doctor`: from a location to a report, a figure, a cleaned copy and an exit code."""

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ssd_jax.data import codes
from ssd_jax.data.convert import check_destination, convert, describe_copy, split_name
from ssd_jax.data.doctor import Diagnosis, clean, examine, write_diagnosis
from ssd_jax.data.findings import Finding, folder_findings, yolo_findings
from ssd_jax.data.open import open_data, open_parts
from ssd_jax.data.sources.base import Problems, Source
from ssd_jax.data.sources.recordio import mixed_object_widths
from ssd_jax.data.sources.yolo import find_yaml
from ssd_jax.errors import DataError, counted
from ssd_jax.ops.anchors import default_boxes, paper_levels

# Not 2, which is the code of a mistake in the command, as for all verbs.
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
    """Examine a data set and print the findings; return 0 without errors, else ERRORS_FOUND.

    `against` is a second data set that must not share images with the first; `against_split` alone
    is another split of the same location. The report (JSON) and the figure are written to the
    folder `out`, a cleaned copy to `fix`, in the format of its name (see data/convert.py).
    `anchors` default to those of SSD300. `label_width` is compared with the labels of a record file
    as they are, and in other formats with the width of MXNet's shortest labels.
    """
    split = (split,) if isinstance(split, str) else tuple(split)
    name = split_name(split)
    if fix is not None:
        check_destination(fix, name=name)
    problems = Problems("skip")
    options = {"split": split, "classes": classes, "problems": problems}
    try:
        source, too_wide = _open(location, label_width, **options)
    except DataError as error:
        if not problems.found and error.code != codes.BOXES_NORMALISED:
            raise
        # No image is usable: report why each was left out.
        source, findings = None, [Finding.of(each) for each in (*problems.found, error)]
        diagnosis = Diagnosis(tuple(findings), {}, (), ())
    else:
        other = ()
        if against or against_split:
            other_options = {"split": against_split, "problems": Problems("skip")}
            other = (open_data(against or location, **other_options),)
        if anchors is None:
            anchors = default_boxes(SSD300_MAPS, paper_levels(300, SSD300_MAPS))
        diagnosis = examine(
            source,
            other=other,
            anchors=anchors,
            label_width=None if too_wide else label_width,
        )
        diagnosis = diagnosis._replace(findings=diagnosis.findings + too_wide)
    diagnosis = diagnosis._replace(
        findings=diagnosis.findings + _file_findings(location, split, source)
    )
    print(describe(diagnosis, location))
    if out is not None:
        write_diagnosis(diagnosis, pathlib.Path(out) / REPORT)
        print(f"All findings: {pathlib.Path(out) / REPORT}")
    if out is not None and source is not None:
        from ssd_jax.visualize.data import plot_data

        plot_data(source, pathlib.Path(out) / PICTURE, anchors=anchors, title=location)
        print(f"Classes, sizes and anchors: {pathlib.Path(out) / PICTURE}")
    if fix is not None:
        cleaned = None if source is None else clean(source, diagnosis)
        if cleaned:
            print(f"Cleaned copy: {describe_copy(cleaned, convert(cleaned, fix, name=name))}")
        else:
            print("No cleaned copy, because no image is usable")
    return ERRORS_FOUND if diagnosis.count("error") else 0


def _open(
    location: str, label_width: int | None, *, problems: Problems, **options
) -> tuple[Source, tuple[Finding, ...]]:
    """The source, and a finding if a record file has wider labels."""
    try:
        return open_data(location, label_width=label_width, problems=problems, **options), ()
    except DataError as error:
        if error.code != codes.LABEL_WIDTH_SMALL:
            raise
        problems.found.clear()
        return open_data(location, problems=problems, **options), (Finding.of(error),)


def _file_findings(
    location: str, split: tuple[str, ...], source: Source | None
) -> tuple[Finding, ...]:
    """Findings about the files of local data sets, besides the images that were opened."""
    findings = []
    paths = [pathlib.Path(place) for place, _ in open_parts(location, split)]
    if source is not None and any(map(find_yaml, paths)):
        findings += yolo_findings(source)
    for path in paths:
        if path.suffix == ".rec" and path.is_file():
            mixed = mixed_object_widths(path)
            findings += [] if mixed is None else [Finding.of(mixed)]
        else:
            findings += folder_findings(path)
    return tuple(findings)


def describe(diagnosis: Diagnosis, location: str) -> str:
    """The report as text: the data set, each code with examples, and the totals."""
    lines = [location]
    figures = diagnosis.statistics
    if figures:
        of_class = ", ".join(f"{name} {n:,}" for name, n in figures["objects_by_class"].items())
        lines += [
            f"  {counted(figures['images'], 'image')}, {figures['images_without_objects']:,} "
            f"without objects; {counted(figures['objects'], 'object')}, "
            f"{figures['difficult_objects']:,} difficult, at most "
            f"{figures['most_objects_in_an_image']:,} in an image (label width "
            f"{figures['label_width']:,} or more)",
            f"  objects per class: {of_class}",
        ]
        if figures["unreached_share"] is not None:
            share = f"{figures['unreached_share']:.1%}"
            lines.append(f"  {share} of the objects have an IoU below 0.5 with every anchor")
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
    """The most common messages, each with its first place; for unknown classes, a histogram."""
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
