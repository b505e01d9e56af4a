"""Weights of torchvision's form give the features that PyTorch computes from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.models.initialise import init_variables
from ssd_jax.models.ssd import build_model, feature_shapes
from ssd_jax.weights.load import load_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
nn, functional = torch.nn, torch.nn.functional

SIDE = 64
WIDTHS = [1 / 8, pytest.param(1.0, marks=pytest.mark.long)]


class TorchVGG16(nn.Module):
    """torchvision's vgg16, from the names of its parameters on; computes what SSD makes of it."""

    def __init__(self, width):
        super().__init__()
        layers, channels = [], 3
        for out, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, int(out * width), 3, padding=1), nn.ReLU()]
                channels = int(out * width)
            layers += [nn.MaxPool2d(2, 2)]
        units = int(4096 * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, units),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(units, units),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(units, 10),
        )

    def forward(self, x):
        conv4_3 = self.features[:23](x)
        x = self.features[23:-1](conv4_3)
        x = functional.max_pool2d(x, 3, stride=1, padding=1)
        sixth, seventh = self.classifier[0], self.classifier[3]
        kernel = sixth.weight.reshape(len(sixth.weight), -1, 7, 7)[::4, :, ::3, ::3]
        x = functional.conv2d(x, kernel, sixth.bias[::4], padding=6, dilation=6).relu()
        kernel = seventh.weight[::4, ::4, None, None]
        fc7 = functional.conv2d(x, kernel, seventh.bias[::4]).relu()
        return 20 * functional.normalize(conv4_3, eps=1e-10), fc7


class TorchBottleneck(nn.Module):
    def __init__(self, inputs, inner, stride, project):
        super().__init__()
        outer = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        if project:
            conv = nn.Conv2d(inputs, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

    def forward(self, x):
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + shortcut).relu()


class TorchResNet50(nn.Module):
    """torchvision's resnet50 (v1.5); computes the last two stages."""

    def __init__(self, width):
        super().__init__()
        inputs = int(64 * width)
        self.conv1 = nn.Conv2d(3, inputs, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for stage, blocks in enumerate((3, 4, 6, 3), start=1):
            inner = int(64 * width) * 2 ** (stage - 1)
            made = []
            for block in range(blocks):
                first = block == 0
                made.append(TorchBottleneck(inputs, inner, 2 if first and stage > 1 else 1, first))
                inputs = 4 * inner
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        x = functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, padding=1)
        stage3 = self.layer3(self.layer2(self.layer1(x)))
        return stage3, self.layer4(stage3)


@torch.no_grad()
def fill(network):
    """Values of which none is as good as another, and which keep activations of the order of 1."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def _backbone(model, images, *, train):
    return model.backbone(images, train=train)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("backbone", "torch_network", "batch_norm"),
    [("vgg16", TorchVGG16, "none"), ("resnet50", TorchResNet50, "frozen")],
    ids=["vgg16", "resnet50"],
)
def test_features_are_those_of_pytorch(tmp_path, backbone, torch_network, batch_norm, width):
    theirs = torch_network(width).eval()
    fill(theirs)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")

    count = len(feature_shapes(backbone=backbone, image_size=SIDE))
    model = build_model(
        backbone=backbone,
        num_classes=1,
        image_size=SIDE,
        anchors_per_cell=(1,) * count,
        width=width,
        batch_norm=batch_norm,
    )
    variables = init_variables(model, SIDE, seed=0)
    variables, report = load_weights(variables, tmp_path / "model.safetensors", backbone=backbone)
    assert not any(path for path in report.kept if "/backbone/" in path and "_norm/" not in path)

    images = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    backbone_of = jax.jit(lambda v, x: model.apply(v, x, train=False, method=_backbone))
    got = backbone_of(variables, jnp.asarray(images))
    for ours, their in zip(got, expected, strict=True):
        their = their.numpy().transpose(0, 2, 3, 1)
        assert 0.01 < np.mean(their > 0) < 1
        assert np.abs(ours - their).max() <= 1e-4 * np.abs(their).max()
