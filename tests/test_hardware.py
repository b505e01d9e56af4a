"""What of the machine a process may use."""

import pytest

from ssd_jax import hardware


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/job/step", {"memory.max": "max", "job/memory.max": "4096"}, 4096),
        ("0::/job/step", {"job/memory.max": "4096", "job/step/memory.max": "1024"}, 1024),
        ("5:memory:/job\n4:cpu:/job", {"memory/job/memory.limit_in_bytes": "2048"}, 2048),
        ("0::/not/mounted/here", {"memory.max": "512"}, 512),
    ],
)
def test_memory_ends_where_that_of_the_control_group_does(tmp_path, group, files, expected):
    (tmp_path / "groups").write_text(group + "\n")
    for name, text in files.items():
        (tmp_path / "limits" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "limits" / name).write_text(text + "\n")
    assert hardware.memory_bytes(tmp_path / "groups", tmp_path / "limits") == expected


def test_memory_is_that_of_the_machine_without_a_limit(tmp_path):
    whole = hardware.memory_bytes(tmp_path / "none", tmp_path)
    assert whole >= hardware.memory_bytes() > 2**28
