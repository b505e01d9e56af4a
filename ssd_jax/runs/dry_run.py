"""The dry run: what is known about a run before its first step, printed without starting it."""

from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.cluster import tell
from ssd_jax.config import flat_items
from ssd_jax.config_check import check, images_together
from ssd_jax.network import build_network, network_warnings
from ssd_jax.recipes import recipe_changes
from ssd_jax.runs.before_training import check_cache, check_without_data, open_sources
from ssd_jax.runs.describe_data import describe_data
from ssd_jax.runs.training import compiled_steps
from ssd_jax.sharding import check_divides, make_mesh


def tell_plan(config: ConfigDict) -> None:
    """Prints settings, data, network, warnings and memory of a run; trains and writes nothing.

    The doctor does not run, and a weight file must exist but is not read.

    Raises:
      UserError: the run could not begin.
    """
    mesh = make_mesh()
    check(config)
    check_divides(config.batch_size, mesh, together=images_together(config))
    changes = recipe_changes(config)
    for name, value in flat_items(config):
        recipe = changes[name]["recipe"] if name in changes else None
        tell(f"config.{name} = {value!r}" + (f"  # recipe: {recipe!r}" if name in changes else ""))
    check_without_data(config)
    config = config.copy_and_resolve_references()
    config.data.doctor = False
    sources = open_sources(config)
    source = sources["train"]
    for line in describe_data(config, sources):
        tell(line)
    check_cache(config, source, mesh)
    network = build_network(config, len(source.classes))
    schedule = experiment.build_schedule(config, len(source))
    optimizer = experiment.build_optimizer(config, schedule)
    state = experiment.build_state_shapes(config, network, optimizer, mesh)
    tell(experiment.describe_network(config, network, state.variables, mesh))
    tell(f"steps: {experiment.total_steps(config, len(source)):,}")
    warnings = network_warnings(config, network)
    for warning in warnings + experiment.schedule_warnings(config, len(source)):
        tell(f"warning: {warning}")
    steps = experiment.build_steps(config, network, schedule, optimizer, mesh)
    compiled_steps(steps, state, config, source, mesh)
