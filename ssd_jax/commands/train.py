"""`ssd-jax train`."""

from ssd_jax.commands.common import verb, workdir


def add(verbs) -> None:
    """Adds the verb."""
    train = verb(
        verbs,
        "train",
        _train,
        "train a detector, or go on where a run was stopped",
        settings=True,
        example="ssd-jax train --config configs/bccd.py --workdir runs/bccd",
    )
    train.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="see configs/")
    workdir(train, "folder of the run; an earlier run there is resumed")


def _train(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.config_check import check
    from ssd_jax.runs import run_training
    from ssd_jax.sharding import use_cpu_cores

    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    check(config)
    use_cpu_cores(config.batch_size)
    run_training(config, options.workdir)
