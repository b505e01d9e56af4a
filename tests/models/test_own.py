"""Backbones that are named by their class."""

import sys

import jax
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.models.own import is_own
from ssd_jax.models.ssd import build_model, feature_shapes

CODE = """
from flax import linen as nn
from ssd_jax.models.layers import ConvStyle


class Strided(nn.Module):
    style: ConvStyle = ConvStyle()

    @nn.compact
    def __call__(self, images, *, train):
        channels = self.style.channels(64)
        x = nn.Conv(channels, (8, 8), 8, kernel_init=nn.initializers.constant(0.5))(images)
        x = x * self.param("gamma", nn.initializers.constant(0.1), (channels,))
        return x, nn.avg_pool(x, (2, 2), (2, 2))


class OneMap(Strided):
    def __call__(self, images, *, train):
        return images


class Upwards(Strided):
    def __call__(self, images, *, train):
        return images[:, ::8, ::8], images


class Bare(nn.Module):
    pass


function = nn.relu
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "own_net.py").write_text(CODE)
    (folder / "own_broken.py").write_text("import own_missing_of_mine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("own_net", None)


def test_a_colon_tells_a_class_from_a_word():
    assert is_own("a.b_2:Net")
    words = ("small", "a.b", "a:", ":Net", "a b:Net", "a:b:c", "../a:Net")
    assert not any(map(is_own, words))


def test_it_takes_its_place_and_begins_with_its_own_values():
    words = {"backbone": "own_net:Strided", "image_size": 64}
    shapes = feature_shapes(**words)
    assert shapes[:2] == ((8, 8), (4, 4))
    model = build_model(**words, num_classes=2, anchors_per_cell=(4,) * len(shapes), width=1 / 4)
    variables = init_variables(model, 64, seed=0)
    backbone = variables["params"]["backbone"]
    assert backbone["Conv_0"]["kernel"].shape == (8, 8, 3, 16)
    assert np.unique(backbone["Conv_0"]["kernel"]).tolist() == [0.5]
    np.testing.assert_allclose(backbone["gamma"], 0.1, rtol=1e-6)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nowhere:Net", r"no module own_nowhere is found\. .*PYTHONPATH"),
        ("own_net.inner:Net", "no module own_net.inner is found|fails to be imported"),
        ("own_broken:Net", r"fails to be imported .*own_missing_of_mine.*python -c"),
        ("own_net:Stride", r"has no flax\.linen\.Module Stride\. The nearest name is Strided"),
        ("own_net:function", "has no flax.linen.Module function"),
        ("own_net:Bare", "Bare has no field `style`"),
        ("own_net:OneMap", r"OneMap returned \w+, expected a tuple of maps \[1, height"),
        (
            "own_net:Upwards",
            r"Upwards returned \[\(1, 8, 8, 3\), \(1, 64, 64, 3\)\], .*finest first",
        ),
    ],
)
def test_what_is_no_backbone_is_refused(name, message):
    with pytest.raises(UserError, match=rf"^config\.model\.backbone: .*{message}"):
        feature_shapes(backbone=name, image_size=64)


def test_a_class_that_is_defined_again_has_its_new_maps(monkeypatch):
    words = {"backbone": "own_net:Strided", "image_size": 64}
    before = feature_shapes(**words)
    module = sys.modules["own_net"]

    class Again(module.Strided):
        def __call__(self, images, *, train):
            return images[:, ::16, ::16], images[:, ::32, ::32]

    monkeypatch.setattr(module, "Strided", Again)
    assert (before[0], feature_shapes(**words)[0]) == ((8, 8), (4, 4))
