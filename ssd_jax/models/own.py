"""Your own backbone: the class that `config.model.backbone` names.

Code that reads a config only calls `is_own`, so nothing heavy is imported before a network is
built.
"""

import importlib
import re
from typing import Any

from ssd_jax.errors import UserError, nearest

EXPECTED = "a class of your own, package.module:Class"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(backbone: str) -> bool:
    """Whether a name is "package.module:Class", not that of a built-in backbone."""
    return _NAME.fullmatch(backbone) is not None


def own_backbone(name: str, style: Any) -> Any:
    """Import "package.module:Class" and return `Class(style=style)`.

    `style` is a `models.layers.ConvStyle`. The class is a `flax.linen.Module` whose call, with
    normalised images [B, S, S, 3] and `train`, returns its feature maps, finest first.

    Raises:
      UserError: the module cannot be imported, or has no such class.
    """
    from flax import linen as nn

    place, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # it is the user's code
        missing = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(
            f"{error.name}."
        )
        raise _refused(
            name,
            f"no module {error.name} is found"
            if missing
            else f"{place} fails to be imported ({type(error).__name__}: {error})",
            "Add the folder that holds it to the environment variable PYTHONPATH, or install it"
            if missing
            else f'Correct it: `python -c "import {place}"` fails in the same way',
        ) from error
    modules = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    ]
    if attribute not in modules:
        near = nearest(attribute, modules)
        raise _refused(
            name,
            f"{module.__file__ or place} has no flax.linen.Module {attribute}",
            f"The nearest name is {near}" if near else "Write it, see docs/extending.md",
        )
    made = getattr(module, attribute)
    if "style" not in getattr(made, "__dataclass_fields__", {}):
        raise _refused(name, f"{attribute} has no field `style`", "Add one: `style: ConvStyle`")
    return made(style=style)


def check_maps(backbone: Any, maps: Any, images: Any) -> tuple:
    """Check the maps that a backbone returned for images [B, S, S, 3]; returns them as a tuple.

    Raises:
      UserError: they are not one or more arrays [B, h, w, c], each no larger than the one before.
    """
    shapes = [getattr(each, "shape", None) for each in maps] if _is_sequence(maps) else []
    fits = [
        shape is not None and len(shape) == 4 and shape[0] == images.shape[0] for shape in shapes
    ]
    if not shapes or not all(fits) or sorted(shapes, key=_area, reverse=True) != shapes:
        name = type(backbone).__name__
        got = shapes or type(maps).__name__
        raise UserError(
            f"config.model.backbone: {name} returned {got}, expected a tuple of maps "
            f"[{images.shape[0]}, height, width, channels], finest first. Correct its __call__, "
            "see docs/extending.md."
        )
    return tuple(maps)


def _is_sequence(maps: Any) -> bool:
    return isinstance(maps, tuple | list)


def _area(shape: tuple) -> int:
    return shape[1] * shape[2]


def _refused(name: str, got: str, advice: str) -> UserError:
    return UserError(f"config.model.backbone: got {name!r}, but {got}. {advice}.")
