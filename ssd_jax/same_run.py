"""Whether the run in a folder is the one that is asked for."""

import pathlib
from collections.abc import Collection

import jax
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax.config import CONFIG_FILE
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.report.starts import data_at_start

# Settings that change how a run is computed and told, but not what comes out of it.
HARDWARE = ("sharding", "data.cache", "data.threads", "data.doctor", "log_every_steps",
            "checkpoint.every_steps", "checkpoint.keep_latest", "evaluate.batch_size",
            "watchdog.factor", "watchdog.minimum_seconds", "watchdog.first_seconds")  # fmt: skip


def has_trained(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint behind step 0, which is that of imported weights."""
    names = (path.name for path in workdir.glob("checkpoints/[0-9]*"))
    return any(name.isdigit() and int(name) for name in names)


def changed_settings(
    config: ConfigDict, path: pathlib.Path, *, free: Collection[str] = HARDWARE
) -> str:
    """What differs from the config in the file, but for what is `free`; "" if nothing does."""
    before = dict(configs.flat_items(configs.read_config(path)))
    return "; ".join(
        f"config.{name} was {before[name]!r} and is now {value!r}"
        for name, value in configs.flat_items(config)
        if before[name] != value and name not in free
    )


def settle_config(config: ConfigDict, workdir: pathlib.Path, sources: dict[str, Source]) -> None:
    """Writes config.json, or refuses to go on with a run of another config or of other data.

    Raises:
      UserError: what differs.
    """
    path = workdir / CONFIG_FILE
    if path.is_file() and any(workdir.glob("checkpoints/[0-9]*")):
        before = data_at_start(workdir)
        # The same data may lie elsewhere by now.
        free = {*HARDWARE, *(f"data.{split}.root" for split in before)}
        if changed := changed_settings(config, path, free=free):
            raise UserError(
                f"{workdir}: the run there was started with another config: {changed}. "
                "Go on with the same one, or choose another --workdir, and with it "
                f"--config.weights.path={workdir} to begin with the weights of this run."
            )
        for split, source in sources.items():
            if source.fingerprint != before.get(split, source.fingerprint):
                raise UserError(
                    f"{workdir}: the run there was started with other data: the annotations of "
                    f"{split} have the fingerprint {source.fingerprint}, and had {before[split]}. "
                    "Go on with the same data, or choose another --workdir."
                )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save_config(config, path)
