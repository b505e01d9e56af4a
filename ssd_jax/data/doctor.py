"""The doctor: reads a whole data set once, in parallel, and reports what is wrong with it.

It uses no accelerator. It decodes images with the same decoder as training.
"""

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssd_jax import __version__
from ssd_jax.data import codes
from ssd_jax.data.decode import decode_example
from ssd_jax.data.findings import (
    LABEL_HEADER,
    LABEL_OBJECT,
    Finding,
    Reach,
    annotation_findings,
    best_ious,
    boxes_twice,
    index_findings,
)
from ssd_jax.data.sources.base import Annotations, Source
from ssd_jax.data.sources.image_file import exif_orientation
from ssd_jax.data.sources.memory import IN_MEMORY
from ssd_jax.data.storage import is_remote
from ssd_jax.errors import DataError, UserError, counted
from ssd_jax.files import write_text
from ssd_jax.hardware import cores

# Decoding to a small canvas reads all of the data, but builds only an eighth of the image.
CANVAS = 32
# Images after which the JPEG decoder's complaints are read.
CHUNK = 64
# libjpeg continues after these and fills in grey; it reports them on standard error only.
COMPLAINT = re.compile(
    r"(Corrupt JPEG data: .*|Premature end of JPEG file|Inconsistent progression .*)"
)


class Diagnosis(NamedTuple):
    """The findings, the set's statistics as JSON values, and the images that copy an earlier one.

    A copy has the same bytes and the same objects. `digests` has a hash of the bytes of each
    image, "" for an image that cannot be read.
    """

    findings: tuple[Finding, ...]
    statistics: dict[str, Any]
    copies: tuple[int, ...]
    digests: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of findings by code."""
        return dict(sorted(collections.Counter(each.code for each in self.findings).items()))

    def count(self, severity: str) -> int:
        """The number of findings of one severity."""
        return sum(each.severity == severity for each in self.findings)

    def usable(self, source: Source) -> Int[np.ndarray, "K"]:
        """The images of `source` without an error."""
        bad = {each.image for each in self.findings if each.severity == "error"}
        return np.array([i for i in range(len(source)) if i not in bad], np.int64)


class _Look(NamedTuple):
    """What was learned from reading one image."""

    digest: bytes
    error: DataError | None
    orientation: int = 1
    complaint: str = ""


def examine(
    source: Source,
    *,
    other: Sequence[Source] = (),
    anchors: Float[np.ndarray, "A 4"] | None = None,
    label_width: int | None = None,
) -> Diagnosis:
    """Diagnose a set: first the problems met when it was opened, then its images, then the whole.

    Open `source` with `Problems("skip")`, so that what it left out is reported too. Images that
    are also in one of `other` are leaks. `label_width` is a limit to check, if any.
    """
    looks: list[_Look] = []
    digests: list[dict[bytes, int]] = [{} for _ in other]
    total = len(source) + sum(map(len, other))
    with (
        concurrent.futures.ThreadPoolExecutor(cores()) as pool,
        tqdm(total=total, desc="examining", unit=" images", disable=None) as bar,
    ):
        for start in range(0, len(source), CHUNK):
            chunk = range(start, min(start + CHUNK, len(source)))
            looks += _look_at(source, chunk, pool)
            bar.update(len(chunk))
        for each, found in zip(other, digests, strict=True):
            hashes = pool.map(functools.partial(_hash_of, each), range(len(each)))
            for image, digest in enumerate(hashes):
                found[digest] = image
                bar.update()
    twins = _twins(looks)
    reach = None if anchors is None else best_ious(source.annotations, anchors)
    findings = [
        *(Finding.of(error) for error in source.problems.found),
        *index_findings(source),
        *_image_findings(source, looks),
        *_twin_findings(source, twins),
        *_leaks(source, looks, zip(other, digests, strict=True)),
        *annotation_findings(source, reach=reach, label_width=label_width),
    ]
    copies = tuple(image for image, first in twins.items() if _same_objects(source, image, first))
    in_hex = tuple(look.digest.hex() for look in looks)
    return Diagnosis(tuple(findings), _statistics(source, reach), copies, in_hex)


def check_before_training(
    source: Source, cache_folder: str | os.PathLike
) -> tuple[Int[np.ndarray, "K"], Diagnosis]:
    """Examine a set; returns the images that can be trained on, and all that was found.

    Unusable images are refused or left out as `source.problems` says; `source.take` the rest. The
    result is kept in `cache_folder`, if that can be written to, for as long as the annotations, the
    image files and `source.files` are the same. Changes of images behind a URL, as in some
    manifests, or in memory cannot be seen: such a set is examined each time.
    """
    path = pathlib.Path(cache_folder) / f"doctor-{_stamp(source)}.json"
    tells_change = _tells_change(source)
    diagnosis = _read_cache(path) if tells_change else None
    if diagnosis is None:
        diagnosis = examine(source)
        if tells_change:
            with contextlib.suppress(OSError):
                write_diagnosis(diagnosis, path)
    bad = [
        each for each in diagnosis.findings if each.severity == "error" and each.image is not None
    ]
    if bad and source.problems.policy == "error":
        shown = "\n".join(f"  {each.error}" for each in bad[:5])
        raise UserError(
            f"found {counted(len(bad), 'error')} in images, expected none:\n{shown}\n"
            + source.problems.advice
        )
    for each in bad:
        source.problems(each.error)
    return diagnosis.usable(source), diagnosis


def clean(source: Source, diagnosis: Diagnosis) -> Source:
    """The source without the images that have errors, and without exact copies.

    Copies are objects with the same box and class in one image, and images with the same bytes and
    the same objects. Boxes that cannot be used were left out when the source was opened.
    """
    columns = source.annotations
    keep = ~boxes_twice(columns)[1]
    counts = np.bincount(columns.image_of_object[keep], minlength=len(source))
    once = Source(
        Annotations(
            columns.names,
            columns.sizes,
            np.concatenate([[0], np.cumsum(counts)]),
            *(column[keep] for column in columns[3:]),
        ),
        source.classes,
        read_image=source.read_image,
        locate=source.locate,
        problems=source.problems,
        files=source.files,
    )
    return once.take(np.setdiff1d(diagnosis.usable(source), diagnosis.copies))


def write_diagnosis(diagnosis: Diagnosis, path: str | os.PathLike) -> None:
    """Write all findings and statistics; an interrupted write leaves no file."""
    report = {
        "errors": diagnosis.count("error"),
        "warnings": diagnosis.count("warning"),
        "counts": diagnosis.counts,
        "statistics": diagnosis.statistics,
        "copies": diagnosis.copies,
        "digests": diagnosis.digests,
        "findings": [
            each._asdict() | {"message": each.message, "severity": each.severity}
            for each in diagnosis.findings
        ],
    }
    write_text(path, json.dumps(report, indent=1))


def _read_cache(path: pathlib.Path) -> Diagnosis | None:
    """The diagnosis in a file; None if there is none, or it is unreadable or incomplete."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = [Finding(*(each[name] for name in Finding._fields)) for each in report["findings"]]
        return Diagnosis(
            tuple(found), report["statistics"], tuple(report["copies"]), tuple(report["digests"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tells_change(source: Source) -> bool:
    """Whether a change of the images shows in the size or time of their files."""
    places = map(source.locate, range(len(source)))
    return not any(is_remote(place) or place.startswith(IN_MEMORY) for place in places)


def _stamp(source: Source) -> str:
    """A hash of the annotations, the fields kept, and the name, size and time of every file."""
    left_out = [str(error) for error in source.problems.found]
    what = (__version__, Finding._fields, source.fingerprint, left_out)
    digest = hashlib.sha256(repr(what).encode())
    for path in [*source.files, *(source.locate(image) for image in range(len(source)))]:
        digest.update(f"\n{path}".encode(errors="backslashreplace"))
        # An image inside a larger file is not a file itself, and some names no file can have.
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            digest.update(f" {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _look_at(
    source: Source, images: Sequence[int], pool: concurrent.futures.Executor
) -> list[_Look]:
    look = functools.partial(_look, source)
    with _stderr_of_c() as lines:
        looks = list(pool.map(look, images))
    if _complaint(lines):
        # Standard error is shared by the whole process: decoding the images one at a time shows
        # which of them each complaint is about.
        for place, image in enumerate(images):
            with _stderr_of_c() as lines:
                look_again = look(image)
            looks[place] = look_again._replace(complaint=_complaint(lines))
    return looks


def _look(source: Source, image: int) -> _Look:
    try:
        data = source.read_image(image)
    except DataError as error:
        return _Look(b"", error)
    error = None
    try:
        example = source.example(image, data)
        decode_example(example, image, canvas=CANVAS, max_objects=max(1, len(example.labels)))
    except DataError as problem:
        error = problem
    return _Look(_digest(data), error, exif_orientation(data))


def _hash_of(source: Source, image: int) -> bytes:
    try:
        return _digest(source.read_image(image))
    except DataError:
        return b""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _image_findings(source: Source, looks: Sequence[_Look]) -> Iterator[Finding]:
    for image, look in enumerate(looks):
        where = source.locate(image)
        if look.error is not None:
            yield Finding.of(look.error, image)
        elif look.complaint:
            problem = f"the image decodes, but the decoder says: {look.complaint}"
            fix = "Look at it, and replace it if a part of it is grey or shifted"
            yield Finding(codes.IMAGE_DAMAGED, where, problem, fix, image)
        turn = f"EXIF orientation {look.orientation}"
        if look.orientation not in range(1, 9):
            problem = f"{turn}, expected 1 to 8; the image stays as stored"
            fix = "Remove the tag: other programs may turn the image"
            yield Finding(codes.EXIF_ILLEGAL, where, problem, fix, image)
        elif look.orientation != 1:
            problem = f"{turn}, expected 1: the image is turned as viewers turn it"
            fix = "Check that its boxes were drawn on the turned image, or remove the tag"
            yield Finding(codes.EXIF_ORIENTATION, where, problem, fix, image)


def _twins(looks: Sequence[_Look]) -> dict[int, int]:
    """Images with the same bytes as an earlier one: {image: the first of them}."""
    first: dict[bytes, int] = {}
    seen = {image: first.setdefault(look.digest, image) for image, look in enumerate(looks)}
    return {image: one for image, one in seen.items() if image != one and looks[image].digest}


def _twin_findings(source: Source, twins: dict[int, int]) -> Iterator[Finding]:
    for image, first in twins.items():
        same = "the same objects" if _same_objects(source, image, first) else "OTHER objects"
        problem = f"the same bytes as {source.locate(first)}, with {same}, expected each image once"
        yield Finding(codes.IMAGE_TWICE, source.locate(image), problem, "Remove one of them", image)


def _same_objects(source: Source, image: int, other: int) -> bool:
    both = source.annotations.take(np.array([image, other]))
    columns = np.column_stack([both.boxes, both.labels, both.difficult])
    one, two = np.split(columns, [both.offsets[1]])
    return np.array_equal(np.unique(one, axis=0), np.unique(two, axis=0))


def _leaks(
    source: Source, looks: Sequence[_Look], others: Iterable[tuple[Source, dict[bytes, int]]]
) -> Iterator[Finding]:
    for other, digests in others:
        for image, look in enumerate(looks):
            if look.digest and look.digest in digests:
                place = other.locate(digests[look.digest])
                problem = f"the same bytes as {place} of the other set"
                problem += ", expected sets that share no image"
                fix = "Remove it from one of them"
                yield Finding(codes.LEAKAGE, source.locate(image), problem, fix, image)


def _statistics(source: Source, reach: Reach | None) -> dict[str, Any]:
    columns = source.annotations
    counts = source.object_counts
    of_class = np.bincount(columns.labels, minlength=len(source.classes)).tolist()
    most = int(counts.max(initial=0))
    return {
        "images": len(source),
        "images_without_objects": int(np.sum(counts == 0)),
        "objects": len(columns.labels),
        "difficult_objects": int(columns.difficult.sum()),
        "objects_by_class": dict(zip(source.classes, of_class, strict=True)),
        "most_objects_in_an_image": most,
        "label_width": LABEL_HEADER + LABEL_OBJECT * most,
        "unreached_share": None if reach is None else reach.unreached,
    }


def _complaint(lines: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(line for line in lines if COMPLAINT.fullmatch(line)))


@contextlib.contextmanager
def _stderr_of_c() -> Iterator[list[str]]:
    """Collect the lines that are written to standard error, also by C code.

    Lines that are not a complaint about an image are passed on.
    """
    lines: list[str] = []
    with tempfile.TemporaryFile() as spool:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(spool.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            spool.seek(0)
            lines += spool.read().decode(errors="replace").splitlines()
            for line in lines:
                if not COMPLAINT.fullmatch(line):
                    print(line, file=sys.stderr)
