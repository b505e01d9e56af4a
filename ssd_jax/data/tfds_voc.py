"""TFDS's data set `voc`, prepared from the official tar files without TensorFlow.

The builder of tensorflow-datasets 4.9.10 extracts the archives and reads them with TensorFlow's
file system. The builder here has the same name, features and version but reads the tar files
directly; `tfds.builder("voc/2007")` and `tfds.data_source` can read the data set it prepares.
"""

import io
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import tensorflow_datasets as tfds
from defusedxml import DefusedXmlException, ElementTree
from tensorflow_datasets.core import registered
from tensorflow_datasets.object_detection import voc

from ssd_jax.data import codes
from ssd_jax.errors import DataError

# Many times VOC's sizes: images of 0.2 MB, image sets of 0.2 MB, annotations of 20 kB.
LARGEST_MEMBER = 32 << 20
MOST_MEMBERS = 1_000_000


class Archive:
    """Files of a tar archive, read in place; nothing is ever extracted to disk."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115, closed by close()
        except (tarfile.TarError, OSError) as error:
            raise self._unreadable(f"it is not a tar file ({error})") from error
        try:
            for count, member in enumerate(self._tar):
                self._check(member, count)
                self._members[member.name] = member
        except (tarfile.TarError, OSError, ValueError) as error:
            self._tar.close()
            raise error if isinstance(error, DataError) else self._unreadable(str(error)) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._tar.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        """The content of a file."""
        if name not in self:
            raise self._unreadable(f"it does not hold {name}")
        try:
            return self._tar.extractfile(self._members[name]).read()
        except (tarfile.TarError, OSError) as error:
            raise self._unreadable(f"{name} cannot be read ({error})") from error

    def read_xml(self, name: str) -> Element:
        """The root of an XML file."""
        try:
            return ElementTree.fromstring(self.read(name))
        except (ParseError, DefusedXmlException) as error:
            raise self._unreadable(f"{name} cannot be read ({error})") from error

    def _check(self, member: tarfile.TarInfo, count: int) -> None:
        problem = None
        if member.name.startswith("/") or ".." in member.name.split("/"):
            problem = "its name leads out of the archive"
        elif not (member.isreg() or member.isdir()):
            problem = "it is a link or a device, expected files and folders only"
        elif not 0 <= member.size <= LARGEST_MEMBER:
            problem = f"it has {member.size:,} bytes, expected at most {LARGEST_MEMBER:,}"
        elif count >= MOST_MEMBERS:
            problem = f"it is one of more than {MOST_MEMBERS:,} files"
        if problem:
            raise DataError(
                codes.NAME_UNSAFE,
                f"{self._path}, {member.name!r}",
                problem,
                "Use the official archive",
            )

    def _unreadable(self, problem: str) -> DataError:
        return DataError(
            codes.ARCHIVE_UNREADABLE, str(self._path), problem, "Use the official archive"
        )


with registered.skip_registration():

    class VocFromArchives(voc.Voc):
        """TFDS's `voc` from tar files `archives` (`trainval`, `test`), which are not extracted.

        Without `test` there is no test split: the test images of 2012 have no annotations.
        """

        name = "voc"

        def __init__(self, *, archives: Mapping[str, pathlib.Path], **options: Any):
            self._archives = dict(archives)
            super().__init__(**options)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            sets = {
                tfds.Split.TEST: ("test", "test"),
                tfds.Split.TRAIN: ("trainval", "train"),
                tfds.Split.VALIDATION: ("trainval", "val"),
            }
            return {
                split: self._generate_examples(self._archives[archive], image_set)
                for split, (archive, image_set) in sets.items()
                if archive in self._archives
            }

        def _generate_examples(self, path: pathlib.Path, image_set: str) -> Iterator:
            root = f"VOCdevkit/VOC{self.builder_config.year}"
            with Archive(path) as archive:
                lines = archive.read(f"{root}/ImageSets/Main/{image_set}.txt")
                feature = self.info.features["objects"].feature
                for image_id in lines.decode("utf-8", "replace").split():
                    yield image_id, _example(archive, root, image_id, feature)


def _example(
    archive: Archive, root: str, image_id: str, feature: tfds.features.FeaturesDict
) -> dict[str, Any]:
    name = f"{root}/Annotations/{image_id}.xml"
    annotation = archive.read_xml(name)
    try:
        width, height = (float(annotation.findtext(f"size/{side}")) for side in ("width", "height"))
        objects = [_object(thing, width, height) for thing in annotation.findall("object")]
        for thing in objects:
            feature.encode_example(thing)  # refuses unknown classes and boxes outside
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise DataError(
            codes.ANNOTATION_UNREADABLE, name, str(error), "Use the official archive"
        ) from error
    return {
        "image": io.BytesIO(archive.read(f"{root}/JPEGImages/{image_id}.jpg")),
        "image/filename": f"{image_id}.jpg",
        "objects": objects,
        "labels": sorted({thing["label"] for thing in objects}),
        "labels_no_difficult": sorted(
            {thing["label"] for thing in objects if not thing["is_difficult"]}
        ),
    }


def _object(thing: Element, width: float, height: float) -> dict[str, Any]:
    xmin, ymin, xmax, ymax = (
        float(thing.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")
    )
    return {
        "label": thing.findtext("name").lower(),
        "pose": thing.findtext("pose").lower(),
        # As in TFDS: VOC's pixels, which count from 1, are divided without a shift.
        "bbox": tfds.features.BBox(ymin / height, xmin / width, ymax / height, xmax / width),
        "is_truncated": thing.findtext("truncated") == "1",
        "is_difficult": thing.findtext("difficult") == "1",
    }
