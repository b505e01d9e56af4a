"""The inputs of a prediction: images and frames of videos, from local and remote places."""

import glob
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from ssd_jax.data import codes
from ssd_jax.data.decode import decode_image, draw_pixels
from ssd_jax.data.remote import SCHEMES, shown_url, split_url
from ssd_jax.data.sources.voc import IMAGE_SUFFIXES
from ssd_jax.data.storage import is_remote, list_urls, read_bytes, safe_names, stage
from ssd_jax.errors import DataError, UserError, counted
from ssd_jax.files import files_below, is_hidden

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
# Suffixes of image formats that are not supported.
OTHER_SUFFIXES = (".bmp", ".gif", ".heic", ".tif", ".tiff", ".webp")
# The longest side of a drawing, in pixels.
DRAWN_SIDE = 1600
# By how much the number of frames in a header may be wrong: frames, and a share of them.
INEXACT_FRAMES, INEXACT_SHARE = 2, 0.01
# The number of threads that read and decode images.
THREADS = 4


class Item(NamedTuple):
    """An image or a video.

    `name` is the path below the given folder or prefix, or else the name of the file. `place` is a
    path or URL.
    """

    name: str
    place: str

    @property
    def shown(self) -> str:
        """The place for messages and results; of a URL, nothing that may be a password."""
        return shown_place(self.place)

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return _suffix(self.name) in VIDEO_SUFFIXES

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return str(pathlib.PurePosixPath(self.name).with_suffix(""))


class Frame(NamedTuple):
    """A decoded image, or one frame of a video.

    `canvas` and `extent` are the inputs of a detector, `size` is (height, width) in pixels.
    `number` counts the frames of a video from 0, and `seconds` is the time of the frame; both are
    None for an image. `pixels()` gives the image in RGB for drawing, with sides of at most
    `DRAWN_SIDE` pixels.
    """

    item: Item
    canvas: UInt8[np.ndarray, "S S 3"]
    extent: tuple[int, int]
    size: tuple[int, int]
    pixels: Callable[[], UInt8[np.ndarray, "h w 3"]]
    number: int | None = None
    seconds: float | None = None
    frames_per_second: float | None = None


def find_items(
    places: Sequence[str],
    *,
    key: Literal["stem", "name", "place"] = "stem",
    out: pathlib.Path | None = None,
) -> list[Item]:
    """Find the images and videos in files, folders, globs, URLs and prefixes of buckets.

    `key` is the attribute that names their results. `out` is the folder for these: if a folder or a
    glob is searched and `out` is below it, what is in `out` is left out.

    Raises:
      UserError: there is nothing at a place, or two items have the same `key`.
    """
    items = [item for place in places for item in _items_at(place, out)]
    seen: dict[str, str] = {}
    for item in items:
        called = getattr(item, key)
        other = seen.setdefault(called, item.place)
        if other != item.place:
            raise UserError(
                f"{shown_place(other)} and {shown_place(item.place)} are both called {called}, "
                "so their results would overwrite each other. Give them in separate calls, each "
                "with its own --out."
            )
    return list({item.place: item for item in items}.values())


def read_frames(
    items: Iterable[Item],
    canvas_side: int,
    *,
    unreadable: Callable[[DataError], None],
) -> Iterator[Frame]:
    """All frames in order; threads read and decode images ahead.

    The errors of items that cannot be decoded are passed to `unreadable`, and the items left out.
    """

    def picture(item: Item) -> Frame | DataError:
        try:
            return _read_picture(item, canvas_side)
        except DataError as error:
            return error
        except OSError as error:
            return _unreadable(item, f"it cannot be read: {error.strerror or error}")

    with ThreadPoolExecutor(THREADS) as pool:
        items = iter(items)
        ahead: list[tuple[Item, Future | None]] = []
        try:
            while True:
                for item in itertools.islice(items, 2 * THREADS - len(ahead)):
                    ahead.append((item, None if item.is_video else pool.submit(picture, item)))
                if not ahead:
                    return
                item, future = ahead.pop(0)
                if future is None:
                    try:
                        yield from _read_video(item, canvas_side)
                    except DataError as error:
                        unreadable(error)
                elif isinstance(frame := future.result(), DataError):
                    unreadable(frame)
                else:
                    yield frame
        finally:
            pool.shutdown(cancel_futures=True)


def shown_place(place: str) -> str:
    """A place for messages; a URL is shown without anything that may be a password."""
    return shown_url(place) if is_remote(place) else place


def check_places(places: Sequence[str]) -> None:
    """Raise a `UserError` for impossible places, without listing buckets or folders."""
    for place in places:
        scheme, separator, rest = place.partition("://")  # the rest may hold a password
        if separator and not is_remote(place):
            raise UserError(
                f"got a URL of {scheme}://, expected a path, or a URL of {', '.join(SCHEMES)}. "
                "Download it by other means."
            )
        in_bucket = is_remote(place) and scheme not in ("http", "https")
        if in_bucket and glob.has_magic(rest.partition("/")[0]):
            raise UserError(
                f"{shown_url(place)}: a wildcard in the name of a bucket. Give its full name."
            )
        if not (is_remote(place) or os.path.exists(place) or glob.has_magic(place)):
            raise UserError(f"{place}: no such file or folder. Give images (JPEG, PNG) or videos.")


def _items_at(place: str, out: pathlib.Path | None) -> list[Item]:
    check_places([place])
    if is_remote(place):
        return _remote_items(place)
    path = pathlib.Path(place)
    if path.is_dir():
        there = [each for each in sorted(files_below(path)) if each.is_file()]
        found = [each for each in there if _is_known(each.name)]
        if others := [each for each in there if _suffix(each.name) in OTHER_SUFFIXES]:
            message = f"{counted(len(others), 'image')} left out, such as {others[0]}: "
            message += "only JPEG and PNG are read"
            print(message, file=sys.stderr)
        items = [Item(each.relative_to(path).as_posix(), str(each)) for each in found]
        items = _without_results(items, path, out)
    elif path.is_file():
        return [Item(path.name, place)]
    else:
        there = list(filter(os.path.isfile, sorted(glob.glob(place, recursive=True))))
        # A glob that names only others, e.g. files without a suffix, means them.
        found = list(filter(_is_known, there)) or there
        if others := sorted(set(there) - set(found)):
            message = f"{counted(len(others), 'file')} left out, such as {others[0]}: expected "
            print(message + _EXPECTED, file=sys.stderr)
        items = [Item(os.path.basename(each), each) for each in found]
        fixed = itertools.takewhile(lambda name: not glob.has_magic(name), path.parts)
        items = _without_results(items, pathlib.Path(*fixed), out)
    if not items:
        raise UserError(f"{place}: no images or videos there. Expected {_EXPECTED}.")
    return items


def _without_results(
    items: list[Item], searched: pathlib.Path, out: pathlib.Path | None
) -> list[Item]:
    """The items without those in `out`, if it is below the folder that was searched."""
    if out is None or searched.resolve() not in (results := out.resolve()).parents:
        return items
    inside = [pathlib.Path(item.place).parent.resolve().is_relative_to(results) for item in items]
    if any(inside):
        message = f"{counted(sum(inside), 'image')} left out because of --out, {out}, such as "
        message += items[inside.index(True)].place
        print(message, file=sys.stderr)
    return [item for item, left_out in zip(items, inside, strict=True) if not left_out]


def _remote_items(url: str) -> list[Item]:
    # The first name is the host or bucket. The result files have these names.
    names = safe_names(url)
    if url.startswith(("http://", "https://")):
        urls = [url]
    elif glob.has_magic(url):
        urls, found = _glob_urls(url)
        if found:
            return [Item(safe_names(each)[-1], each) for each in found]
    else:
        urls = list_urls(url)
    if len(names) > 1 and urls == [url]:
        return [Item(names[-1], url)]
    below = {each: safe_names(each)[len(names) :] for each in urls if _is_known(each)}
    items = [
        Item("/".join(path), each) for each, path in below.items() if not any(map(is_hidden, path))
    ]
    if not items:
        raise UserError(f"{shown_url(url)}: no images or videos there. Expected {_EXPECTED}.")
    return items


def _glob_urls(url: str) -> tuple[list[str], list[str]]:
    """(objects with literally this name, else images and videos that match the glob)."""
    scheme, bucket, patterns = split_url(url)
    fixed = itertools.takewhile(lambda name: not glob.has_magic(name), patterns)
    there = list_urls(f"{scheme}://{'/'.join([bucket, *fixed])}")
    if literal := [each for each in there if f"{each}/".startswith(f"{url.rstrip('/')}/")]:
        return literal, []
    if url.endswith("/"):  # a glob of folders, as in `glob.glob`
        return [], []
    return [], [each for each in there if _is_known(each) and _fits(split_url(each)[2], patterns)]


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a path matches a glob, in which ** stands for any number of folders.

    As in `glob.glob`, a wildcard matches no name that starts with a dot.
    """
    if not patterns:
        return not names
    first, rest = patterns[0], patterns[1:]
    if first == "**" and _fits(names, rest):
        return True
    if not names or (is_hidden(names[0]) and not is_hidden(first)):
        return False
    return fnmatchcase(names[0], first) and _fits(names[1:], patterns if first == "**" else rest)


_EXPECTED = f"names that end in {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}"


def _suffix(name: str) -> str:
    return pathlib.PurePosixPath(name).suffix.lower()


def _is_known(name: str) -> bool:
    return _suffix(name) in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def _read_picture(item: Item, canvas_side: int) -> Frame:
    place = item.place
    data = read_bytes(place) if is_remote(place) else pathlib.Path(place).read_bytes()
    canvas, extent, size = decode_image(data, item.shown, canvas_side)

    def pixels() -> UInt8[np.ndarray, "h w 3"]:
        drawn, (height, width), _ = decode_image(data, item.shown, DRAWN_SIDE)
        return drawn[:height, :width]

    return Frame(item, canvas, extent, size, pixels)


def _unreadable(item: Item, problem: str) -> DataError:
    fix = "Convert it, for example to MP4 with H.264" if item.is_video else "Check the file"
    return DataError(codes.IMAGE_UNREADABLE, item.shown, problem, fix)


def _read_video(item: Item, canvas_side: int) -> Iterator[Frame]:
    path = stage(item.place) if is_remote(item.place) else item.place
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise _unreadable(item, "OpenCV cannot read it as a video")
        rate = video.get(cv2.CAP_PROP_FPS)
        number, seconds = 0, 0.0
        while True:
            there, picture = video.read()
            if not there:
                break
            # After `read` this is the time of the frame just read.
            seconds = round(video.get(cv2.CAP_PROP_POS_MSEC) / 1000, 6)
            yield _frame_of(item, picture, canvas_side)._replace(
                number=number, seconds=seconds, frames_per_second=rate
            )
            number += 1
        if not number:
            raise _unreadable(item, "the video has no readable frame")
        # A header may have the duration only, from which OpenCV estimates the number of frames,
        # far too high for a variable rate. So the time of the last frame counts as well.
        declared = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        reached = max(number, round(seconds * rate) + 1)
        if declared - reached > max(INEXACT_FRAMES, INEXACT_SHARE * declared):
            # No error: the frames that an MP4's edit list leaves out are counted too.
            print(
                f"warning: {item.shown}: its header has {declared} frames, of which {number} could "
                "be read. It is damaged or cut off, unless it was trimmed without encoding it "
                "again.",
                file=sys.stderr,
            )
    finally:
        video.release()


def _frame_of(item: Item, picture: UInt8[np.ndarray, "h w 3"], canvas_side: int) -> Frame:
    canvas, size = np.empty((canvas_side, canvas_side, 3), np.uint8), picture.shape[:2]

    def pixels() -> UInt8[np.ndarray, "h w 3"]:
        drawn = np.empty((DRAWN_SIDE, DRAWN_SIDE, 3), np.uint8)
        height, width = draw_pixels(drawn, picture, size)
        return drawn[:height, :width]

    return Frame(item, canvas, draw_pixels(canvas, picture, size), size, pixels)
