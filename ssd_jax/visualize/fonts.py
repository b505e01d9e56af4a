"""The fonts of names: DejaVu Sans, which Matplotlib ships, and installed ones for what it lacks.

Matplotlib is imported only when it is used, because that takes a while.
"""

import functools
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import ImageFont

FAMILY = "DejaVu Sans"


def font_of(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font that draws a text: DejaVu Sans, unless an installed one has more of it."""
    characters = frozenset(text)
    files = _files_of(_lacking(_dejavu(), characters))
    return _opened(min(files, key=lambda file: len(_lacking(file, characters))), size)


def families_of(texts: Iterable[str]) -> list[str]:
    """DejaVu Sans, then the families from which Matplotlib takes the characters that it lacks."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    families = [FAMILY]
    for file in _files_of(_lacking(_dejavu(), frozenset("".join(texts))))[1:]:
        families.append(FT2Font(file).family_name)
        # Matplotlib remembers the fonts of its first use, and so misses those installed later.
        if families[-1] not in fontManager.get_font_names():
            fontManager.addfont(file)
    return families


@functools.cache
def _files_of(lacking):
    """DejaVu Sans, then installed fonts that together have as many more characters as possible."""
    files = [_dejavu()]
    while lacking:
        best = min(_installed(), key=lambda file: len(_lacking(file, lacking)), default=files[0])
        if _lacking(best, lacking) == lacking:
            break
        files.append(best)
        lacking = _lacking(best, lacking)
    return files


def _dejavu():
    import matplotlib

    return str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@functools.cache
def _installed():
    """The files of the installed fonts that are neither bold nor slanted nor coloured pictures."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    files = []
    for file in sorted(findSystemFonts()):
        try:
            font = FT2Font(file)
        except (OSError, RuntimeError):
            continue
        if font.scalable and font.style_name in ("Regular", "Book", "Normal"):
            files.append(file)
    return files


def _lacking(file, characters):
    """The characters that a font does not have."""
    has = np.isin([ord(each) for each in characters], _codes(file))
    return frozenset(each for each, found in zip(characters, has, strict=True) if not found)


@functools.cache
def _codes(file):
    from matplotlib.ft2font import FT2Font

    return np.array(list(FT2Font(file).get_charmap()), np.int32)


@functools.cache
def _opened(file, size):
    return ImageFont.truetype(file, size)
