"""What a loss and an augmentation of one's own may give; nothing here is compiled."""

import functools
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.data.decode import empty_rows
from ssd_jax.errors import UserError
from ssd_jax.train.hooks import Hooks, call_augment, call_loss, qualified_name

BATCH = empty_rows(2, canvas=8, max_objects=3)
IMAGES = jnp.zeros((2, 8, 8, 3))
OUTPUTS = jnp.zeros((2, 5, 4)), jnp.zeros((2, 5, 3))


def own_loss(box_deltas, class_logits, batch):
    return jnp.sum(box_deltas), {}


class OwnAugment:
    def __call__(self, batch, step):
        return IMAGES, batch


def test_functions_are_known_by_module_and_name():
    partial = functools.partial(functools.partial(own_loss, batch=None))
    assert Hooks(loss=partial, augment=OwnAugment()).names == {
        "loss": f"{__name__}.own_loss",
        "augment": f"{__name__}.OwnAugment",
    }
    assert Hooks().names == {"loss": None, "augment": None}


def test_a_script_is_called_as_it_is_imported(monkeypatch):
    script = types.ModuleType("__main__")
    script.__file__ = "/somewhere/my_script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(own_loss, "__module__", "__main__")
    assert qualified_name(own_loss) == "my_script.own_loss"
    del script.__file__  # a notebook
    assert qualified_name(own_loss) == "__main__.own_loss"


def test_more_rows_of_objects_and_any_size_that_is_not_told_pass():
    wider = BATCH._replace(
        **{name: np.repeat(getattr(BATCH, name), 4, axis=1)
           for name in ("boxes", "labels", "difficult", "valid")}
    )  # fmt: skip
    given = IMAGES, wider
    assert call_augment(lambda batch, step: given, BATCH, 0) is not None
    assert call_augment(lambda batch, step: given, BATCH, 0, image_size=8)[1] is wider


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (IMAGES, r"it returned float32\[2, 8, 8, 3\], expected a pair \(images, batch\)"),
        ((IMAGES, {}), r"it returned \(float32\[2, 8, 8, 3\], dict\), expected a pair"),
        ((IMAGES[:1], BATCH), r"float32\[1, 8, 8, 3\], expected images float32\[2, 8, 8, 3\]"),
        ((IMAGES[:, :6, :6], BATCH), r"\[2, 6, 6, 3\], expected images float32\[2, 8, 8, 3\]"),
        ((IMAGES.astype(jnp.uint8), BATCH), r"uint8\[2, 8, 8, 3\], expected images float32"),
        ((IMAGES, BATCH._replace(valid=np.zeros((2, 2), bool))),
         r"bool\[2, 2\], expected batch.valid bool\[2, 3\]"),
        ((IMAGES, BATCH._replace(labels=np.zeros((2, 3)))), "float64.*expected batch.labels int32"),
    ],
)  # fmt: skip
def test_an_augmentation_that_gives_something_else_is_refused(given, message):
    with pytest.raises(UserError, match=f"^augment: .*{message}"):
        call_augment(lambda batch, step: given, BATCH, 0, image_size=8)


def test_metrics_may_be_numbers_and_have_the_loss():
    given = jnp.float32(2), {"images": 2, "share": 0.5}
    _, metrics = call_loss(lambda *_: given, *OUTPUTS, BATCH)
    assert {name: (float(x), x.dtype) for name, x in metrics.items()} == {
        "loss": (2.0, jnp.float32), "images": (2.0, jnp.float32), "share": (0.5, jnp.float32)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (jnp.float32(1), r"it returned float32\[\], expected a pair \(loss, metrics\)"),
        ((jnp.zeros(2), {}), r"float32\[2\], expected a scalar float32\[\]"),
        ((jnp.int32(1), {}), r"int32\[\], expected a scalar"),
        ((1.0, {}), r"it returned 1\.0, expected a scalar"),
        ((jnp.float32(1), {"each": jnp.zeros(2)}), r"metrics\['each'\]: it returned float32\[2\]"),
        ((jnp.float32(1), {"name": "x"}), r"metrics\['name'\]: it returned 'x', expected a scalar"),
        ((jnp.float32(1), {"lr": 1.0}), r"metrics\['lr'\].*not one of step, .* lr, "),
        ((jnp.float32(1), {"step": 1.0}), r"metrics\['step'\].*not one of step, "),
    ],
)
def test_a_loss_that_gives_something_else_is_refused(given, message):
    with pytest.raises(UserError, match=f"^loss.*{message}"):
        call_loss(lambda *_: given, *OUTPUTS, BATCH)
