"""Weight files by name from the Hugging Face hub, through the optional `huggingface_hub`."""

import json
import pathlib
import re
import types

from ssd_jax.errors import UserError, first_line

HUB = "hf://"
_NAME = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+)(?:@(?P<revision>[^@]+))?")


def fetch(name: str) -> tuple[str, dict[str, str]]:
    """Download `hf://owner/repo/file[@revision]` into the hub's cache, if it is not there yet.

    Returns its path, and details for the load report: the commit, the licence, and for a timm model
    the preprocessing that its weights expect.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(
            f"{name}: not the name of a file on the hub. Expected hf://owner/repo/file, with "
            "@revision appended for any but the newest version."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name}: fetching from the hub needs huggingface_hub, which is not installed. "
            "Install it with: pip install 'ssd-jax[weights]'"
        ) from error
    try:
        path = huggingface_hub.hf_hub_download(
            match["repo"], match["file"], revision=match["revision"]
        )
    # The errors come from the hub's HTTP library, which differs between versions.
    except Exception as error:
        raise UserError(
            f"{name}: could not be fetched ({first_line(error)}). Check the name and the network, "
            "or download the file yourself and give its path."
        ) from error
    return path, _about(huggingface_hub, match["repo"], match["revision"])


def _about(hub: types.ModuleType, repo: str, revision: str | None) -> dict[str, str]:
    try:
        info = hub.model_info(repo, revision=revision)
        about = {
            "commit": info.sha,
            "licence": (info.card_data or {}).get("license") or "not given",
        }
        if any(sibling.rfilename == "config.json" for sibling in info.siblings or ()):
            config = hub.hf_hub_download(repo, "config.json", revision=info.sha)
            about |= _preprocessing(pathlib.Path(config).read_text())
        return about
    except Exception as error:  # a file in the cache can be used without a network
        return {"licence": f"unknown, the hub did not answer ({first_line(error)})"}


def _preprocessing(config: str) -> dict[str, str]:
    """The mean and std in timm's config.json, converted from images in 0..1 to 0..255."""
    try:
        expected = json.loads(config)["pretrained_cfg"]
        mean, std = ([round(255 * x, 3) for x in expected[key]] for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError):  # another library's config
        return {}
    return {"preprocessing": f"config.preprocess: mean {mean}, std {std}"}
