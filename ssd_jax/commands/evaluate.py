"""`ssd-jax evaluate`."""

from ssd_jax.commands.common import step, verb, workdir


def add(verbs) -> None:
    """Adds the verb."""
    evaluate = verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a trained detector",
        settings=True,
        example="ssd-jax evaluate --workdir runs/bccd --split test",
    )
    workdir(evaluate, "folder of a run")
    evaluate.add_argument("--split", choices=("val", "test"), help="default: as the run's report")
    step(evaluate)


def _evaluate(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.config_check import check
    from ssd_jax.runs import run_evaluation
    from ssd_jax.sharding import use_cpu_cores

    config = configs.read_config(options.workdir / "config.json")
    configs.override(config, configs.split_assignments(rest))
    check(config)
    use_cpu_cores(config.batch_size)
    run_evaluation(config, options.workdir, split=options.split, step=options.step)
