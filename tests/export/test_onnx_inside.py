"""Every tensor of an ONNX model lies in it, wherever the model may keep one."""

from importlib.util import find_spec

import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.export import engines
from ssd_jax.export.folder import ONNX, ModelFolder

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


def folder_with(model):
    return ModelFolder("model.tar.gz", {}, {ONNX: memoryview(model.SerializeToString())})


@pytest.mark.parametrize(
    "model", [as_initializer, as_attribute, in_a_subgraph, sparse, in_a_function]
)
def test_a_tensor_in_another_file_is_refused_wherever_it_stands(model):
    inside = model(tensor())
    assert engines._read_onnx(folder_with(inside)) == inside.SerializeToString()
    with pytest.raises(
        UserError, match=r"^model\.tar\.gz: model\.onnx may have a tensor in another file"
    ):
        engines._read_onnx(folder_with(model(tensor(location="weights"))))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_runtime_sees_a_model_that_reads_other_files(engine):
    if not find_spec(engine):
        pytest.skip(f"{engine} is missing")
    folder = folder_with(as_initializer(tensor(location="weights")))
    with pytest.raises(UserError, match="may have a tensor in another file"):
        engines._BUILDERS[engine](engines.Parts(folder, None, None))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_runtime_reads_another_file_whose_place_has_another_key(engine, tmp_path, monkeypatch):
    if not find_spec(engine):
        pytest.skip(f"{engine} is missing")
    (tmp_path / "weights").write_bytes(np.ones(3, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    elsewhere = tensor(location="weights")
    elsewhere.external_data[0].key = "Location"
    value = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [3])
    node = onnx.helper.make_node("Identity", ["w"], ["out"])
    graph = onnx.helper.make_graph([node], "g", [], [value], initializer=[elsewhere])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(UserError, match=f"{engine} cannot run it"):
        engines._BUILDERS[engine](engines.Parts(folder_with(model), None, None))
