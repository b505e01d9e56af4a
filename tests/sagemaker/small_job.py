"""A whole job that is quick: its hyperparameters, settings, data and command."""

from sagemaker.opt_ml import channel, write_job

from ssd_jax.data.convert import run_convert

HYPERPARAMETERS = {
    "base_network": "vgg-16",
    "use_pretrained_model": "0",
    "num_classes": "3",
    "num_training_samples": "20",
    "mini_batch_size": "8",
    "epochs": "2",
    "lr_scheduler_step": "1",
    "optimizer": "rmsprop",
    # All but the heads, which spares the compiler most of the gradient.
    "freeze_layer_pattern": "^(conv|fc|relu4_3_scale|multi_feat_._conv_.x._conv).*",
}
# The container has no smaller network; these make it quick.
QUICK = [
    "--config.model.width=0.02",
    "--config.model.image_size=64",
    "--config.data.canvas=64",
    "--config.data.threads=0",
    "--config.augment.interpolations=linear",
    "--config.augment.jitter.probability=0",
    "--config.augment.expand.probability=0",
    "--config.augment.crop.min_ious=()",
    "--config.detect.candidates=50",
    "--config.detect.max_detections=20",
]


def prepare(root, shapes, **changes):
    for name, split in (("train", "train"), ("validation", "val")):
        folder = root / "input/data" / name
        folder.mkdir(parents=True)
        run_convert(str(shapes), str(folder / "data.rec"), split=(split,))
    write_job(
        root,
        channels={name: channel() for name in ("train", "validation")},
        hyperparameters=HYPERPARAMETERS | changes,
    )
    return root


def command(root):
    return ["-m", "ssd_jax", "sagemaker", "train", "--root", str(root), *QUICK]
