"""`ssd-jax train`."""

from ssd_jax.commands.common import (
    cluster_arguments,
    join_cluster,
    names_argument,
    refuse_misplaced,
    seconds,
    verb,
    workdir,
)


def add(verbs) -> None:
    """Adds the verb."""
    train = verb(
        verbs,
        "train",
        _train,
        "train a detector, or resume a run that was stopped",
        settings=True,
        example="ssd-jax train --config configs/bccd.py --workdir runs/bccd",
    )
    train.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="config file, e.g. configs/bccd.py, or the config.json of a run",
    )
    workdir(
        train,
        "folder of the run, or s3://...; an earlier run there is resumed",
        required=False,
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, data, network, steps and planned memory, then exit; writes nothing",
    )
    train.add_argument(
        "--time-limit",
        type=seconds,
        metavar="TIME",
        help="save and stop after this long (90s, 45m, 3h), with exit code 75; see "
        "docs/reliability.md",
    )
    names_argument(
        train,
        "--change",
        "settings of an existing run that may change to the values given now; see docs/training.md",
    )
    cluster_arguments(train)


def _train(options, rest):
    import faulthandler

    from ssd_jax import config as configs
    from ssd_jax.config_check import check

    if options.dry_run:
        given = {"--change": options.change, "--time-limit": options.time_limit}
        refuse_misplaced(given, "with --dry-run")
    elif not options.workdir:
        options.parser.error("the following arguments are required: --workdir")
    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    check(config)
    join_cluster(options, config)
    if options.dry_run:
        from ssd_jax.runs.dry_run import tell_plan

        return tell_plan(config)
    from ssd_jax.runs.training import run_training  # late, because its imports take seconds
    from ssd_jax.train.mirror import workdir_to_write

    # JAX aborts a process if another one of its run dies; the stacks then show where it was.
    if not faulthandler.is_enabled():
        faulthandler.enable(2)
    with workdir_to_write(options.workdir) as workdir:
        run_training(
            config,
            workdir,
            time_limit=options.time_limit,
            called=options.workdir,
            change=options.change,
        )
