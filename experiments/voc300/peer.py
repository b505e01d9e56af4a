"""A peer: torchvision's SSD with VGG16, with the same photos, weights, epochs, batch and rate.

    python experiments/voc300/peer.py --data FOLDER --weights FILE --out DIR
        [--reduced] [--fc6 FACTOR] [--seed N]
    ssd-jax evaluate --detections DIR/012 --ground-truth FOLDER --split val

FOLDER is that of run.py; with --reduced it is the folder that run.py makes, runs/voc300/reduced/
data, which has half of the validation photos. Needs torch, torchvision and safetensors, but not
ssd_jax. Network, matching, losses and detections are those of torchvision.models.detection.ssd; the
augmentation is the "ssd" policy of its detection references in torchvision's own transforms. The
detections are written as result files of the VOC devkit, DIR/EPOCH/comp4_det_val_CLASS.txt.
README.md has the results.
"""

import argparse
import math
import pathlib
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.transforms import v2

MEANS = (123.68, 116.779, 103.939)  # of RGB, as the weights expect
MOMENTUM, WEIGHT_DECAY, CLIP_NORM, WARMUP_PART = 0.9, 5e-4, 35.0, 0.05
# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


class Scale(NamedTuple):
    """The same protocol as in arms.py; `scales` and `steps` are those of the anchors there."""

    size: int
    ratios: tuple[list[int], ...]
    scales: tuple[float, ...]
    steps: tuple[int, ...] | None
    batch: int
    epochs: int
    rate: float
    decays: tuple[float, ...]
    evaluations: int
    frozen_convolutions: int = 0


FULL = Scale(
    300,
    ([2], [2, 3], [2, 3], [2, 3], [2], [2]),
    (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05),
    (8, 16, 32, 64, 100, 300),
    batch=32,
    epochs=120,
    rate=1e-3,
    decays=(2 / 3, 5 / 6),
    evaluations=12,
)
REDUCED = Scale(
    128,
    ([2], [2, 3], [2], [2]),
    (0.1, 0.2, 0.2 + 0.85 / 3, 0.2 + 1.7 / 3, 1.05),
    None,
    batch=8,
    epochs=12,
    rate=2.5e-4,
    decays=(0.7, 0.9),
    evaluations=4,
    frozen_convolutions=7,  # conv1_1 to conv3_3
)


def network(scale: Scale, weights: str, *, fc6_factor: float = 1.0) -> SSD:
    """ssd300_vgg16 with the feature maps of the image size, and a pretrained VGG16.

    The weights have no fc6 and fc7, which stay random; those of fc6 are multiplied by a factor.
    """
    backbone = ssd300_vgg16(weights=None, weights_backbone=None).backbone
    backbone.extra = backbone.extra[: len(scale.ratios) - 1]
    convolutions = [
        layer
        for part in (backbone.features, backbone.extra[0])
        for layer in part.modules()
        if isinstance(layer, nn.Conv2d)
    ][:13]
    given = load_file(weights)
    names = [
        f"conv{i}_{j}" for i, count in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, count + 1)
    ]
    for index, (name, layer) in enumerate(zip(names, convolutions, strict=True)):
        layer.weight.data.copy_(given[f"{name}/kernel"].permute(3, 2, 0, 1))
        layer.bias.data.copy_(given[f"{name}/bias"])
        layer.requires_grad_(index >= scale.frozen_convolutions)
    _, fc6, *_ = backbone.extra[0][-1]
    fc6.weight.data.mul_(fc6_factor)
    return SSD(
        backbone,
        DefaultBoxGenerator(
            list(scale.ratios), scales=list(scale.scales), steps=scale.steps and list(scale.steps)
        ),
        (scale.size, scale.size),
        len(CLASSES) + 1,
        image_mean=[mean / 255 for mean in MEANS],
        image_std=[1 / 255] * 3,
    )


class Photos(torch.utils.data.Dataset):
    """Photos of an image set with their objects, difficult ones included."""

    def __init__(self, folder: pathlib.Path, image_set: str, transform: Any) -> None:
        ids = (folder / "ImageSets" / "Main" / f"{image_set}.txt").read_text().split()
        self.photos = [(image, *objects(folder / "Annotations" / f"{image}.xml")) for image in ids]
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any], str]:
        name, boxes, labels = self.photos[index]
        image = read_image(str(self.folder / "JPEGImages" / f"{name}.jpg"), ImageReadMode.RGB)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:])
        image, target = self.transform(
            tv_tensors.Image(image), {"boxes": boxes, "labels": torch.tensor(labels)}
        )
        return image, target, name


def objects(annotation: pathlib.Path) -> tuple[list[list[float]], list[int]]:
    """Boxes in pixels, counted from 0, and labels, counted from 1."""
    boxes, labels = [], []
    for found in ElementTree.parse(annotation).iter("object"):
        corners = [
            float(found.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        boxes.append([corners[0] - 1, corners[1] - 1, corners[2], corners[3]])
        labels.append(CLASSES.index(found.findtext("name")) + 1)
    return boxes, labels


def augmentation() -> v2.Compose:
    """The "ssd" policy of torchvision's references/detection/presets.py."""
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: MEANS, "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def batches(photos: Photos, scale: Scale, seed: int, workers: int) -> Iterator[Any]:
    """Batches without end, each epoch in another order."""
    loader = torch.utils.data.DataLoader(
        photos,
        scale.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=lambda items: items,
        generator=torch.Generator().manual_seed(seed),
    )
    while True:
        yield from loader


def rate_factor(step: int, steps: int, scale: Scale) -> float:
    """Warm-up over a fraction of the steps, then a tenth after each of the decays."""
    return min(1.0, (step + 1) / (WARMUP_PART * steps)) * 0.1 ** sum(
        step >= part * steps for part in scale.decays
    )


@torch.inference_mode()
def detect(net: SSD, photos: Photos, folder: pathlib.Path, device: torch.device) -> None:
    """Writes the result files of the VOC devkit: id score xmin ymin xmax ymax, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {name: [] for name in CLASSES}
    net.eval()
    for image, _, name in (photos[index] for index in range(len(photos))):
        (found,) = net([image.to(device)])
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            xmin, ymin, xmax, ymax = box.tolist()
            corners = f"{xmin + 1:.2f} {ymin + 1:.2f} {xmax:.2f} {ymax:.2f}"
            lines[CLASSES[label - 1]].append(f"{name} {score:.6f} {corners}\n")
    net.train()
    for name, own in lines.items():
        (folder / f"comp4_det_val_{name}.txt").write_text("".join(own))


def main() -> None:
    """Trains, and detects as often as an arm is evaluated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder in VOC layout")
    parser.add_argument("--weights", required=True, help="an ImageNet VGG16, see docs/weights.md")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--reduced", action="store_true", help="a size for a CPU")
    parser.add_argument(
        "--fc6", type=float, default=1.0, metavar="FACTOR", help="the factor that run.py prints"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that read photos")
    options = parser.parse_args()
    scale = REDUCED if options.reduced else FULL

    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = network(scale, options.weights, fc6_factor=options.fc6).to(device).train()
    photos = Photos(options.data, "train", augmentation())
    val = Photos(options.data, "val", v2.ToDtype(torch.float32, scale=True))
    trained = [each for each in net.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(
        [
            {"params": [each for each in trained if each.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [each for each in trained if each.ndim == 1], "weight_decay": 0.0},
        ],
        scale.rate,
        momentum=MOMENTUM,
    )
    steps = math.ceil(scale.epochs * len(photos) / scale.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, steps, scale)
    )
    started, shown = time.monotonic(), []
    source = batches(photos, scale, options.seed, options.workers)
    for step, batch in enumerate(source, 1):
        images = [image.to(device) for image, _, _ in batch]
        targets = [{key: each.to(device) for key, each in target.items()} for _, target, _ in batch]
        loss = sum(net(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        schedule.step()
        shown.append(loss.item())
        if step % 50 == 0:
            seconds = time.monotonic() - started
            mean = sum(shown) / len(shown)
            print(f"step {step}/{steps}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            shown.clear()
        if step * scale.evaluations // steps > (step - 1) * scale.evaluations // steps:
            epoch = step * scale.epochs // steps
            detect(net, val, options.out / f"{epoch:03d}", device)
        if step == steps:
            break


if __name__ == "__main__":
    main()
