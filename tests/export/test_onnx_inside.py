"""Every tensor of an ONNX model lies in it, wherever the model may keep one."""

import time
from importlib.util import find_spec

import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.export import engines
from ssd_jax.export.folder import ONNX, ModelFolder
from ssd_jax.export.onnx_inside import CHILDREN, DATA_LOCATION, EXTERNAL_DATA, check_all_inside

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")


def tensor(**outside):
    made = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")
    if outside:
        onnx.external_data_helper.set_external_data(made, **outside)
        made.ClearField("raw_data")
    return made


def as_initializer(held):
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor(), held]))


def as_attribute(held):
    node = onnx.NodeProto(attribute=[onnx.AttributeProto(name="value", t=held)])
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(), node]))


def in_a_subgraph(held):
    branch = onnx.AttributeProto(name="then_branch", g=as_attribute(held).graph)
    return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(attribute=[branch])]))


def sparse(held):
    tensors = onnx.SparseTensorProto(values=tensor(), indices=held)
    return onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[tensors]))


def in_a_function(held):
    function = onnx.FunctionProto(node=as_attribute(held).graph.node)
    return onnx.ModelProto(functions=[function])


@pytest.mark.parametrize(
    "model", [as_initializer, as_attribute, in_a_subgraph, sparse, in_a_function]
)
def test_a_tensor_in_another_file_is_refused_wherever_it_stands(model):
    check_all_inside(memoryview(model(tensor()).SerializeToString()), "model.onnx")
    elsewhere = model(tensor(location="weights")).SerializeToString()
    with pytest.raises(UserError, match=r"model\.onnx: a tensor of it lies in another file"):
        check_all_inside(memoryview(elsewhere), "model.onnx")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_runtime_sees_a_model_that_reads_other_files(engine):
    if not find_spec(engine):
        pytest.skip(f"{engine} is missing")
    model = as_initializer(tensor(location="weights")).SerializeToString()
    folder = ModelFolder("model.tar.gz", {}, {ONNX: memoryview(model)})
    with pytest.raises(UserError, match=r"^model\.tar\.gz: model\.onnx: a tensor of it lies in an"):
        engines._BUILDERS[engine](engines.Parts(folder, None, None))


def test_every_message_that_may_hold_a_tensor_is_walked():
    def children(name):
        fields = getattr(onnx, name).DESCRIPTOR.fields
        return {each.number: each.message_type.name for each in fields if each.message_type}

    holders, before = {"TensorProto"}, set()
    messages = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    while holders != before:
        before = set(holders)
        holders |= {name for name in messages if holders & set(children(name).values())}
    expected = {
        name: {number: kind for number, kind in children(name).items() if kind in holders}
        for name in holders
    }
    assert expected == CHILDREN
    numbers = onnx.TensorProto.DESCRIPTOR.fields_by_name
    assert numbers["external_data"].number == EXTERNAL_DATA
    assert numbers["data_location"].number == DATA_LOCATION


# Each of the last three would be another field, or none, to a reader that is less strict.
@pytest.mark.parametrize(
    "data",
    [b"\x3a", b"\x3a\x05\x00", b"\xff" * 11, b"\x3b\x3c", b"\xba\x80\x80\x80\x10\x00", b"\x01"],
    ids=bytes.hex,
)
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(UserError, match=r"model\.onnx: no ONNX model: .*Fetch it again"):
        check_all_inside(memoryview(data), "model.onnx")


def test_how_many_fields_a_model_has_is_bounded(monkeypatch):
    monkeypatch.setattr("ssd_jax.export.onnx_inside._MOST_FIELDS", 100)
    with pytest.raises(UserError, match="more than 100 fields"):
        check_all_inside(memoryview(b"\x08\x01" * 100), "model.onnx")


def test_the_values_of_a_tensor_cost_no_time():
    large = onnx.TensorProto(raw_data=bytes(2**24))
    data = memoryview(as_initializer(large).SerializeToString())
    start = time.process_time()
    check_all_inside(data, "model.onnx")
    assert time.process_time() - start < 0.1
