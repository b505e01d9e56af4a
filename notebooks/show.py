"""A picture in a notebook, as a JPEG, so that the notebook stays a small file."""

import io
import os

import IPython.display
import numpy as np
import PIL.Image


def show(picture: np.ndarray | str | os.PathLike, width: int = 900) -> IPython.display.Image:
    """The picture, or the file with it, at most `width` pixels wide."""
    if not isinstance(picture, np.ndarray):
        with PIL.Image.open(picture) as image:
            picture = np.asarray(image.convert("RGB"))
    image = PIL.Image.fromarray(picture)
    image.thumbnail((width, 100 * width))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return IPython.display.Image(data.getvalue(), format="jpeg")
