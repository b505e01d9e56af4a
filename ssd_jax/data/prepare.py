"""`ssd-jax data prepare voc`: PASCAL VOC 2007 and 2012 from the official archives to TFDS's format.

The archives are downloaded, or taken from a folder; they are verified and read without extracting
them, which needs no TensorFlow and no space for extracted files.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from ssd_jax.caches import cache_folder
from ssd_jax.data import codes, storage
from ssd_jax.errors import DataError, check_choice

# The test images of 2012 have no public annotations.
ARCHIVES = {
    "2007": {"trainval": "VOCtrainval_06-Nov-2007.tar", "test": "VOCtest_06-Nov-2007.tar"},
    "2012": {"trainval": "VOCtrainval_11-May-2012.tar"},
}


def prepare_voc(
    out: str | os.PathLike,
    *,
    archives: str | os.PathLike | None = None,
    years: Sequence[str] = ("2007", "2012"),
    base_url: str | None = None,
    checksums: Mapping[str, tuple[int, str]] | None = None,
) -> dict[str, dict[str, int]]:
    """Prepare `voc/2007` and `voc/2012` below `out`; returns the images of each split.

    With `archives`, a folder, nothing is downloaded. Otherwise the tar files come from `base_url`
    (default: the mirror that TFDS names) and stay in the cache folder. `checksums` gives size and
    SHA-256 by file name; the defaults are those that tensorflow-datasets has in
    `url_checksums/voc.txt`. A year that is already prepared is left as it is.
    """
    for year in years:
        check_choice("year", year, ARCHIVES)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.object_detection.voc import Voc

    from ssd_jax.data.tfds_voc import VocFromArchives

    # Progress bars only in a terminal, as everywhere.
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    where = {"data_dir": os.fspath(out), "file_format": "array_record"}
    counts = {}
    for year in years:
        builder = Voc(config=year, **where)
        if not pathlib.Path(builder.data_dir, "dataset_info.json").is_file():
            paths = {
                part: _archive(name, archives, base_url, checksums)
                for part, name in ARCHIVES[year].items()
            }
            builder = VocFromArchives(archives=paths, config=year, **where)
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            # TFDS announces a download of unknown size, but nothing is downloaded.
            with contextlib.redirect_stdout(None):
                builder.download_and_prepare(download_config=config)
        counts[f"voc/{year}"] = {
            str(name): split.num_examples for name, split in builder.info.splits.items()
        }
    return counts


def _archive(
    name: str,
    folder: str | os.PathLike | None,
    base_url: str | None,
    checksums: Mapping[str, tuple[int, str]] | None,
) -> pathlib.Path:
    """A verified archive, from the folder if one is given, else downloaded."""
    from tensorflow_datasets.object_detection.voc import Voc

    url, info = next(item for item in Voc.url_infos.items() if item[0].endswith(f"/{name}"))
    size, sha256 = (info.size, info.checksum) if checksums is None else checksums[name]
    if base_url is not None:
        url = f"{base_url.rstrip('/')}/{name}"
    if folder is None:
        path = cache_folder() / "voc" / name
        return storage.fetch(url, path, size=size, sha256=sha256)
    path = pathlib.Path(folder) / name
    if not path.is_file():
        raise DataError(
            codes.ARCHIVE_MISSING,
            str(path),
            f"the file does not exist, expected the official archive of {size:,} bytes",
            f"Download it, for example from {url}",
        )
    storage.verify(path, size=size, sha256=sha256)
    return path
