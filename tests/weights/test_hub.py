import json
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.errors import UserError
from ssd_jax.weights.readers import read_weights

huggingface_hub = pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub, of the extra weights, is not installed"
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository in place of the real one; gives the calls that it got."""
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    config = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    calls = []

    def download(repo, file, *, revision):
        calls.append((repo, file, revision))
        if not (tmp_path / file).is_file():
            raise ConnectionError(f"404: no {file}\nmore of it")
        return str(tmp_path / file)

    def model_info(repo, *, revision):
        return types.SimpleNamespace(
            sha="c0ffee",
            card_data={"license": "apache-2.0"},
            siblings=[types.SimpleNamespace(rfilename=path.name) for path in tmp_path.iterdir()],
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    return calls


def test_a_file_is_fetched_by_name_and_its_origin_recorded(hub):
    source, tensors, metadata = read_weights("hf://timm/vgg16/model.safetensors@main")
    assert source == "hf://timm/vgg16/model.safetensors@main"
    np.testing.assert_array_equal(tensors["a"], [1, 1])
    assert hub[0] == ("timm/vgg16", "model.safetensors", "main")
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {
        "commit": "c0ffee",
        "licence": "apache-2.0",
        "preprocessing": "config.preprocess: mean [127.5, 127.5, 127.5], std [51.0, 51.0, 51.0]",
    }


def test_a_file_in_a_folder_and_no_revision(hub, tmp_path):
    with pytest.raises(UserError):
        read_weights("hf://o/r/folder/w.safetensors")
    assert hub == [("o/r", "folder/w.safetensors", None)]


def test_another_librarys_config_says_nothing_of_preprocessing(hub, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    assert "preprocessing" not in read_weights("hf://o/r/model.safetensors").metadata


def test_a_file_in_the_cache_is_used_without_a_network(hub, monkeypatch):
    def offline(repo, *, revision):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "model_info", offline)
    metadata = read_weights("hf://o/r/model.safetensors").metadata
    assert metadata["licence"] == "unknown, the hub did not answer (no network)"


def test_what_cannot_be_fetched_is_told_in_one_line(hub):
    with pytest.raises(UserError, match=r"hf://o/r/x: could not be fetched \(404: no x\)\. Check"):
        read_weights("hf://o/r/x")


@pytest.mark.parametrize("name", ["hf://", "hf://owner/repo", "hf://o/r/f@", "hf://o/r/f@a@b"])
def test_a_name_of_another_form_is_refused(hub, name):
    with pytest.raises(UserError, match=r"Expected hf://owner/repo/file"):
        read_weights(name)
    assert not hub
