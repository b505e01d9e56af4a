"""Decoding: pixels in the upper left corner, RGB, upright, or an error that says why not."""

import io
import struct
import tarfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ssd_jax.data.decode import (
    REDUCED_FLAGS,
    decode_example,
    decode_image,
    decode_into,
    empty_rows,
)
from ssd_jax.errors import DataError
from ssd_jax.types import Example

# A smooth picture, so that JPEG and resizing keep it: red grows to the right, green downwards.
HEIGHT, WIDTH = 60, 80
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PICTURE[..., 0] = np.linspace(0, 255, WIDTH)
PICTURE[..., 1] = np.linspace(0, 255, HEIGHT)[:, None]


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def with_orientation(tag, picture=PICTURE):
    exif = Image.Exif()
    exif[0x112] = tag
    return encoded(Image.fromarray(picture), "JPEG", quality=95, exif=exif.tobytes())


def test_small_pictures_are_not_scaled():
    canvas, extent, size = decode_image(encoded(Image.fromarray(PICTURE)), "a", 100)
    assert (extent, size) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH))
    np.testing.assert_array_equal(canvas[:HEIGHT, :WIDTH], PICTURE)
    assert not canvas[HEIGHT:].any()
    assert not canvas[:, WIDTH:].any()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("side", "extent"), [(64, (48, 64)), (40, (30, 40)), (13, (10, 13)), (8, (6, 8))]
)
def test_large_pictures_are_scaled_to_fit(kind, side, extent):
    canvas, found, size = decode_image(encoded(Image.fromarray(PICTURE), kind), "a", side)
    assert (found, size) == (extent, (HEIGHT, WIDTH))
    expected = cv2.resize(PICTURE, extent[::-1], interpolation=cv2.INTER_AREA)
    error = canvas[: extent[0], : extent[1]].astype(int) - expected
    assert np.abs(error).mean() < 4


@pytest.mark.parametrize("turned", [False, True])
def test_the_thinnest_picture_keeps_a_pixel(turned):
    line = np.full((1, 200, 3), 7, np.uint8)
    picture = line.swapaxes(0, 1) if turned else line
    canvas, extent, _ = decode_image(encoded(Image.fromarray(picture)), "a", 20)
    assert extent == ((20, 1) if turned else (1, 20))
    assert (canvas[: extent[0], : extent[1]] == 7).all()


def test_every_colour_space_becomes_rgb():
    image = Image.fromarray(PICTURE)
    red_grey = image.getchannel("R")
    for data, expected in [
        (encoded(image.convert("CMYK"), "JPEG", quality=95), PICTURE),
        (encoded(image.convert("RGBA")), PICTURE),
        (encoded(red_grey), PICTURE[..., :1].repeat(3, axis=2)),
        (encoded(red_grey, "JPEG", quality=95), PICTURE[..., :1].repeat(3, axis=2)),
    ]:
        canvas, _, _ = decode_image(data, "a", 80)
        assert np.abs(canvas[:HEIGHT].astype(int) - expected).mean() < 3
    deep = cv2.imencode(".png", PICTURE[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(deep, "a", 80)[0][:HEIGHT], PICTURE)


@pytest.mark.parametrize("side", [80, 40, 8])
def test_exif_orientation_is_applied(side):
    """Tag 6: turn by 90 degrees clockwise to show."""
    canvas, extent, size = decode_image(with_orientation(6), "a", side)
    assert (extent, size) == ((side, side * 3 // 4), (WIDTH, HEIGHT))
    expected = cv2.resize(np.rot90(PICTURE, -1), extent[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(canvas[:side, : extent[1]].astype(int) - expected).mean() < 4


def test_turn_is_seen_on_nearly_square_pictures():
    """59 x 60 halved is 30 x 30, which would not tell that it was turned."""
    data = with_orientation(6, PICTURE[:, :59].copy())
    assert decode_image(data, "a", 20)[2] == (59, 60)


def jpeg():
    return encoded(Image.fromarray(PICTURE), "JPEG")


def png_header(height, width):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (b"", "SSD112", "0 bytes"),
        (b"GIF89a", "SSD112", "start with b'GIF8'"),
        (jpeg()[:-20], "SSD112", "JPEG file ends early"),
        (jpeg()[:20], "SSD112", "JPEG header without an image"),
        (jpeg()[:2] + jpeg()[-2:], "SSD112", "JPEG header without an image"),
        (encoded(Image.fromarray(PICTURE))[:-20], "SSD112", "PNG file ends early"),
        (png_header(60, 80) + b"IEND", "SSD112", "PNG data is damaged"),
        (png_header(20_000, 10_000), "SSD113", "10000 x 20000 pixels, expected at most"),
    ],
)
def test_images_that_do_not_decode_are_named(data, code, part):
    with pytest.raises(DataError, match=f"^{code} some/name: .*{part}") as error:
        decode_image(data, "some/name", 32)
    assert error.value.code == code


def assert_decodes_as_clean(data):
    decoded, clean = (decode_image(each, "a", 32) for each in (data, jpeg()))
    np.testing.assert_array_equal(decoded[0], clean[0])
    assert decoded[1:] == clean[1:]


def test_bytes_after_the_end_are_allowed():
    assert_decodes_as_clean(jpeg() + b"\0" * 16)


def test_markers_may_be_filled_up():
    assert_decodes_as_clean(jpeg()[:2] + b"\xff" + jpeg()[2:])


@pytest.mark.parametrize(
    "between", [b"neither\xff\x00this", b"\xff\x01", b"\xff\xd3\n", b"\0" * 9999]
)
def test_bytes_between_segments_are_allowed(between):
    """Cameras and broken programs leave them, and every viewer skips them."""
    assert_decodes_as_clean(jpeg()[:20] + between + jpeg()[20:])


def test_the_end_of_a_thumbnail_is_not_that_of_the_picture():
    thumbnail = b"\xff\xe1\x00\x04\xff\xd9"  # a segment of four bytes
    assert_decodes_as_clean(jpeg()[:2] + thumbnail + jpeg()[2:])
    with pytest.raises(DataError, match="JPEG file ends early"):
        decode_image(jpeg()[:2] + thumbnail + jpeg()[2:-20], "a", 32)


@pytest.mark.parametrize(("side", "factor"), [(81, 1), (41, 1), (40, 2), (20, 4), (10, 8), (3, 8)])
def test_a_jpeg_is_shrunk_as_it_is_decoded_where_it_stays_as_long_as_the_canvas(
    side, factor, monkeypatch
):
    asked = []
    decode = cv2.imdecode
    monkeypatch.setattr(
        cv2, "imdecode", lambda data, flag: asked.append(flag) or decode(data, flag)
    )
    decode_image(jpeg(), "a", side)
    assert asked == [REDUCED_FLAGS[factor]]


def example(data, size=(HEIGHT, WIDTH), count=2):
    boxes = np.tile(np.array([0, 0, 0.5, 1], np.float32), (count, 1))
    flags = np.ones(count, bool)
    return Example("a", data, size, boxes, np.arange(count, dtype=np.int32), flags)


def test_objects_are_padded_under_a_mask():
    row = decode_example(example(jpeg()), 7, canvas=40, max_objects=3)
    assert row.valid.tolist() == [True, True, False]
    assert row.labels.tolist() == [0, 1, 0]
    assert row.difficult.tolist() == [True, True, False]
    np.testing.assert_array_equal(row.boxes, [(0, 0, 0.5, 1), (0, 0, 0.5, 1), (0, 0, 0, 0)])
    assert (row.extent.tolist(), row.size.tolist()) == ([30, 40], [60, 80])
    assert (row.canvas.shape, int(row.sample_id), bool(row.real)) == ((40, 40, 3), 7, True)


def test_a_row_may_have_held_something_else():
    form = {"canvas": 40, "max_objects": 3}
    used = empty_rows(**form)
    for field in used:
        field[...] = 1
    decode_into(used, example(jpeg()), 7)
    new = decode_example(example(jpeg()), 7, **form)
    for name, field in new._asdict().items():
        np.testing.assert_array_equal(getattr(used, name), field, err_msg=name)
    assert not used.canvas[30:].any()


def test_too_many_objects_says_how_many_are_needed():
    with pytest.raises(DataError, match=r"^SSD135 a \(sample 7\): 2 objects.*max_objects to 2"):
        decode_example(example(jpeg()), 7, canvas=40, max_objects=1)


def test_a_size_that_is_not_annotated_is_that_of_the_image():
    row = decode_example(example(jpeg(), size=None), 0, canvas=40, max_objects=2)
    assert row.size.tolist() == [60, 80]


def test_size_that_disagrees():
    with pytest.raises(DataError, match=r"^SSD114 a: .*80 x 60 pixels, expected 81 x 60") as error:
        decode_example(example(jpeg(), size=(60, 81)), 0, canvas=40, max_objects=2)
    assert "EXIF" not in str(error.value)
    with pytest.raises(DataError, match=r"^SSD114 a: .*60 x 80 pixels, expected 80 x 60.*EXIF"):
        decode_example(example(with_orientation(6)), 0, canvas=40, max_objects=2)


def test_real_defects(shared):
    with tarfile.open(shared / "data/defects.tar.gz") as archive:
        data = {
            member.name: archive.extractfile(member).read()
            for member in archive
            if member.name.endswith(".jpg")
        }
    (truncated,) = (name for name in data if "truncated_jpeg" in name)
    with pytest.raises(DataError, match=r"SSD112 .*00090\.jpg: the JPEG file ends early"):
        decode_image(data[truncated], truncated, 64)
    illegal_tags = sorted(name for name in data if "bad_exif_orientation" in name)
    sizes = [decode_image(data[name], name, 64)[2] for name in illegal_tags]
    assert sizes == [(277, 480), (321, 480)]
