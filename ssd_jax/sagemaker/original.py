"""What SageMaker's own algorithm left, as a run of ours."""

import contextlib
import pathlib
import tarfile
import tempfile
from collections.abc import Iterator, Sequence

from ssd_jax.importing import import_weights

# Of `model_algo_1-0000.params`, `model_algo_1-symbol.json` and `hyperparams.json`.
_ENDINGS = (".params", ".json")


def holds_original(folder: pathlib.Path) -> bool:
    """Whether an artefact of the original lies unpacked in the folder, as an endpoint gets it."""
    return any(folder.glob("*.params"))


@contextlib.contextmanager
def imported_original(
    folder: pathlib.Path, *, assignments: Sequence[tuple[str, str]] = ()
) -> Iterator[pathlib.Path]:
    """The folder of a run with its weights, which goes at the end.

    Its classes are class_0, class_1, ...; answers have their numbers, as those of the original.
    `assignments` change settings, as `config.override` takes them.

    Raises:
      UserError: the files are damaged, or not those of one of its networks.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # The one way in, which bounds and checks what it reads, takes an archive.
        archive = pathlib.Path(scratch, "model.tar")
        with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
            for path in sorted(folder.iterdir()):
                if path.name.endswith(_ENDINGS) and path.is_file():
                    tar.add(path, path.name)
        run = pathlib.Path(scratch, "run")
        import_weights(str(archive), run, assignments=assignments)
        archive.unlink()
        yield run
