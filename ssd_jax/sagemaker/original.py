"""An artefact of SageMaker's own algorithm as the folder of a run."""

import contextlib
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator

from ssd_jax.files import listed

# Of `model_algo_1-0000.params`, `model_algo_1-symbol.json` and `hyperparams.json`.
_ENDINGS = (".params", ".json")


def holds_original(folder: pathlib.Path) -> bool:
    """Whether the folder has an unpacked artefact of the original, as an endpoint gets it."""
    return bool(listed(folder, "*.params"))


@contextlib.contextmanager
def imported_original(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder of a run with the weights of the artefact.

    Its classes are class_0, class_1, ...; responses have class numbers, as those of the original.

    Raises:
      UserError: the files are damaged, or not those of one of the original's networks.
    """
    from ssd_jax.importing import import_weights  # late, because it imports all of training

    with tempfile.TemporaryDirectory() as scratch:
        # Packed again, because the reader that checks its input takes an archive.
        archive, run = pathlib.Path(scratch, "model.tar"), pathlib.Path(scratch, "run")
        with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
            for path in listed(folder, "*"):
                if path.name.endswith(_ENDINGS) and path.is_file():
                    member = tarfile.TarInfo(path.name)
                    member.size = path.stat().st_size
                    with path.open("rb") as content:
                        tar.addfile(member, content)
        import_weights(str(archive), run)
        archive.unlink()
        yield run
