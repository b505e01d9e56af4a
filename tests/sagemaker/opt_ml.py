"""The files that SageMaker puts under /opt/ml, for the tests."""

import json


def write_config(root, name, value):
    path = root / "input/config" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_job(root, *, channels, hyperparameters, hosts=("algo-1",), host="algo-1"):
    """`channels` are names with the content of inputdataconfig.json."""
    write_config(root, "inputdataconfig.json", channels)
    write_config(root, "hyperparameters.json", hyperparameters)
    resources = {"current_host": host, "hosts": list(hosts), "network_interface_name": "eth0"}
    write_config(root, "resourceconfig.json", resources)


def channel(content_type="application/x-recordio", *, mode="File", **more):
    """A channel as inputdataconfig.json describes it."""
    return {
        "ContentType": content_type,
        "TrainingInputMode": mode,
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
        **more,
    }
