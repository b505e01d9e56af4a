"""The mesh: what lies where, and what needs no communication."""

import jax
import jax.numpy as jnp
import numpy as np
from hlo import collectives
from tiny import tiny_config

from ssd_jax.models.initialise import init_variables
from ssd_jax.network import build_network, build_predict
from ssd_jax.sharding import each_device_alone, gather, make_mesh, put_batch, put_replicated


def test_a_batch_is_cut_and_a_state_is_copied():
    mesh = make_mesh()
    rows = np.arange(16.0).reshape(16, 1)
    batch, state = put_batch(rows, mesh), put_replicated(rows, mesh)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}
    assert {shard.data.shape for shard in state.addressable_shards} == {(16, 1)}
    np.testing.assert_array_equal(gather(batch), rows)


def test_each_device_sees_its_own_rows():
    mesh = make_mesh()
    own_sum = each_device_alone(lambda weight, x: weight * x.sum(keepdims=True), mesh)
    result = own_sum(jnp.float32(2.0), put_batch(np.arange(16.0), mesh))
    np.testing.assert_array_equal(result, [2.0 * (4 * i + 1) for i in range(8)])


def test_evaluation_compiles_to_no_collective(shapes):
    config = tiny_config(shapes)
    network = build_network(config, 3)
    mesh = make_mesh()
    variables = put_replicated(init_variables(network.model, 64, seed=0), mesh)
    batch = put_batch((np.zeros((8, 64, 64, 3), np.uint8), np.full((8, 2), 64, np.int32)), mesh)
    predict = each_device_alone(build_predict(config, network), mesh)
    text = predict.lower(variables, *batch).compile().as_text()
    assert "convolution" in text  # the whole program was read, to the loop of the suppression
    assert "while" in text
    assert collectives(text) == []


def test_devices_are_all_there_without_an_explicit_list():
    assert make_mesh().size == len(jax.devices()) == 8
