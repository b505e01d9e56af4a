"""Images and VOC folders with defects, made for the tests of the doctor."""

import io

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
NOISE = np.random.default_rng(0)


def picture():
    return Image.fromarray(NOISE.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def encoded(kind="JPEG", image=None, **options):
    stream = io.BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def with_orientation(tag, byte_order="<"):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x112] = tag
    return encoded(exif=exif.tobytes())


def overwritten(data):
    """The same file with a hundred zeros in the middle of its picture."""
    middle = len(data) // 2
    return data[:middle] + bytes(100) + data[middle + 100 :]


def thing(name="dog", corners=(11, 13, 48, 48), tags=("xmin", "ymin", "xmax", "ymax"), extra=""):
    values = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    box = "".join(f"<{tag}>{values[tag]}</{tag}>" for tag in tags)
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def annotation(*things, size=(HEIGHT, WIDTH), filename="a.jpg", depth=3):
    height, width = size
    return (
        f"<annotation><filename>{filename}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>{depth}</depth></size>{''.join(things)}</annotation>"
    )


def voc(folder, annotations):
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        (folder / f"Annotations/{image_id}.xml").write_text(text, encoding="utf-8")
        (folder / f"JPEGImages/{image_id}.jpg").write_bytes(encoded())
    listed = "".join(f"{image_id}\n" for image_id in annotations)
    (folder / "ImageSets/Main/all.txt").write_text(listed, encoding="utf-8")
    return folder
