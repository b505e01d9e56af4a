"""`ssd-jax benchmark`."""

from ssd_jax.commands.common import verb


def add(verbs) -> None:
    """Adds the verb."""
    benchmark = verb(
        verbs,
        "benchmark",
        _benchmark,
        "find out what this machine can do with a config",
        settings=True,
        example="ssd-jax benchmark --config configs/voc0712_vgg16_300.py --find-batch",
    )
    benchmark.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="see configs/")
    benchmark.add_argument(
        "--find-batch",
        action="store_true",
        required=True,
        help="the largest batch whose training step fits; compiles, executes nothing",
    )
    benchmark.add_argument(
        "--memory-gib",
        type=float,
        metavar="GIB",
        help="memory of a device (default: what JAX may take of it)",
    )


def _benchmark(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.benchmark import run_find_batch
    from ssd_jax.config_check import check
    from ssd_jax.sharding import use_cpu_cores

    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    check(config)
    use_cpu_cores(config.batch_size)
    run_find_batch(config, memory_gib=options.memory_gib)
