"""The smallest run that is still a whole one: 64 px, a few thousand parameters, six steps."""

import pathlib

from safetensors.numpy import save_file

from ssd_jax.config import default_config


def tiny_config(shapes: pathlib.Path, **changes):
    """A config for the `shapes` fixture; `changes` as on the command line, `__` for the dots."""
    config = default_config()
    config.steps = 6
    config.batch_size = 8
    config.model.update(
        {"image_size": 64, "width": 0.02, "batch_norm": "batch", "batch_norm_group": 1}
    )
    for split, image_set in (("train", "train"), ("val", "val")):
        config.data[split].update({"root": str(shapes), "image_sets": (image_set,)})
    config.data.update({"canvas": 64, "threads": 0})
    config.augment.crop.trials = 5
    config.optimizer.decay_epochs = ()
    config.evaluate.update({"batch_size": 8, "every_steps": 4})
    config.checkpoint.update({"every_steps": 1, "keep_latest": 10})
    config.detect.update({"candidates": 50, "max_detections": 20})
    config.log_every_steps = 1
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def write_vgg16(path: pathlib.Path, backbone: dict, *, without: tuple[str, ...] = ()) -> str:
    """The layers of an ImageNet VGG16 out of our own, but for those whose names are given."""
    tensors = {
        f"{layer}/{leaf}": array
        for layer, leaves in backbone.items()
        if layer not in ("conv4_3_norm", *without)
        for leaf, array in leaves.items()
    }
    save_file(tensors, path)
    return str(path)
