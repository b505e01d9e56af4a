"""The fonts of names: DejaVu Sans, which Matplotlib ships, and installed ones for what it lacks.

Matplotlib is imported only when it is used, because that takes a while.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import ImageFont

_FAMILY = "DejaVu Sans"
_PLAIN = ("Regular", "Book", "Normal")
_OTHERS = ("Bold", "Italic", "Oblique", "Black", "Heavy", "Thin")


def runs_of(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The parts of a text, each with the font that has its characters: DejaVu Sans if it can.

    What no font has gets DejaVu Sans too, which draws a box.
    """
    files = _files_of(frozenset(text) - _characters(_dejavu()))

    def file_of(character: str) -> str:
        return next((file for file in files if character in _characters(file)), files[0])

    return [("".join(part), _opened(file, size)) for file, part in itertools.groupby(text, file_of)]


def families_of(texts: Iterable[str]) -> list[str]:
    """DejaVu Sans, then the families from which Matplotlib takes the characters that it lacks."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    families = [_FAMILY]
    for file in _files_of(frozenset("".join(texts)) - _characters(_dejavu()))[1:]:
        families.append(FT2Font(file).family_name)
        # Matplotlib remembers the fonts of its first use, and so misses those installed later.
        if families[-1] not in fontManager.get_font_names():
            fontManager.addfont(file)
    return families


@functools.cache
def _files_of(lacking):
    """DejaVu Sans, then the installed fonts that have most of the characters that it lacks."""
    files = [_dejavu()]
    while lacking:
        counts = {file: _count(file, lacking) for file in _installed()}
        best = max(counts, key=counts.__getitem__, default=None)
        if best is None or not counts[best]:
            break
        files.append(best)
        lacking -= _characters(best)
    return files


@functools.cache
def _dejavu():
    import matplotlib

    return str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@functools.cache
def _installed():
    """The files of the installed fonts that are neither bold nor slanted; regular ones first."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    styles = {}
    for file in sorted(findSystemFonts()):
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):
            continue
        if font.scalable and not any(other in font.style_name for other in _OTHERS):
            styles[file] = font.style_name
    return sorted(styles, key=lambda file: styles[file] not in _PLAIN)


def _count(file, characters):
    return np.isin([ord(each) for each in characters], _codes(file)).sum()


@functools.cache
def _characters(file):
    return frozenset(map(chr, _codes(file).tolist()))


@functools.cache
def _codes(file):
    """The characters of a font as an array, which needs less memory than a set."""
    from matplotlib.ft2font import FT2Font

    return np.array(list(FT2Font(file).get_charmap()), np.int32)


@functools.cache
def _opened(file, size):
    return ImageFont.truetype(file, size)
