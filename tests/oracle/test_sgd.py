"""The optimizer against MXNet's SGD with momentum, multipliers and a drop of the rate."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from oracle.reference import vectors

from ssd_jax.train.optimizer import build_optimizer


@pytest.mark.parametrize("path", vectors("sgd_momentum"))
def test_updates(path):
    case = np.load(path)
    names = [str(name) for name in case["names"]]

    def arrays(kind):
        return {name: jnp.asarray(case[f"{kind}|{name}"]) for name in names}

    def rules(factors):
        return tuple((f"*/{name}", float(x)) for name, x in zip(names, factors, strict=True))

    optimizer = build_optimizer(
        lambda step: jnp.asarray(case["lr"], jnp.float32)[step],
        momentum=0.9,
        learning_rate_in_momentum=True,
        weight_decay=5e-4,
        rate_multipliers=rules(case["lr_mult"]),
        decay_multipliers=rules(case["wd_mult"]),
    )
    params = arrays("w0")
    state = optimizer.init(params)
    for step in range(len(case["lr"])):
        updates, state = optimizer.update(arrays(f"g{step}"), state, params)
        params = optax.apply_updates(params, updates)
        for name, expected in arrays(f"w{step + 1}").items():
            assert_allclose(params[name], expected, atol=1e-6)
