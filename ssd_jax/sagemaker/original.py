"""What SageMaker's own algorithm left, as a run of ours."""

import contextlib
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator

from ssd_jax.files import listed

# Of `model_algo_1-0000.params`, `model_algo_1-symbol.json` and `hyperparams.json`.
_ENDINGS = (".params", ".json")


def holds_original(folder: pathlib.Path) -> bool:
    """Whether an artefact of the original lies unpacked in the folder, as an endpoint gets it."""
    return bool(listed(folder, "*.params"))


@contextlib.contextmanager
def imported_original(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of a run with its weights, which goes at the end.

    Its classes are class_0, class_1, ...; answers have their numbers, as those of the original.

    Raises:
      UserError: the files are damaged, or not those of one of its networks.
    """
    from ssd_jax.importing import import_weights  # with all of training

    with tempfile.TemporaryDirectory() as scratch:
        # The one way in, which bounds and checks what it reads, takes an archive.
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
