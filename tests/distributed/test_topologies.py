"""The same run on any number of processes and devices, and from one to another."""

import json

import pytest
from processes import run_processes, told, training
from same_run import assert_same_run
from topologies import STEPS, assert_agree, assert_same_beginning, config_of, stopped, train_on


@pytest.fixture(scope="module")
def alone(shapes, tmp_path_factory):
    return train_on(1, 1, config_of(shapes), tmp_path_factory.mktemp("topologies") / "1x1")


@pytest.fixture(scope="module")
def two_by_two(shapes, tmp_path_factory):
    return train_on(2, 2, config_of(shapes), tmp_path_factory.mktemp("topologies") / "2x2")


def test_two_processes_train_as_one(alone, two_by_two):
    assert len(alone.batches) == STEPS
    assert_agree(alone, two_by_two)


def test_two_processes_leave_one_report(alone, two_by_two):
    one, two = (
        json.loads((each.workdir / "report.json").read_text()) for each in (alone, two_by_two)
    )
    assert one["protocol"]["images"] == two["protocol"]["images"] == 12
    assert one["metrics"]["map_voc07"] == pytest.approx(two["metrics"]["map_voc07"], abs=0.02)
    events = list((two_by_two.workdir / "tensorboard").iterdir())
    lines = (two_by_two.workdir / "metrics.jsonl").read_text().splitlines()
    assert (len(events), len(lines)) == (1, STEPS + 1)


def test_what_two_processes_began_eight_devices_of_one_go_on_with(
    alone, two_by_two, shapes, tmp_path
):
    resumed = train_on(1, 8, config_of(shapes), stopped(two_by_two, tmp_path))
    assert len(resumed.batches) == STEPS // 2
    assert_agree(alone, resumed)


@pytest.mark.long
def test_resumed_on_two_processes_it_is_bit_equal(two_by_two, shapes, tmp_path):
    config = config_of(shapes)
    resumed = train_on(2, 2, config, stopped(two_by_two, tmp_path))
    assert resumed.batches == two_by_two.batches[-len(resumed.batches) :]
    assert_same_run(tmp_path, two_by_two.workdir, config)


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "devices", "group"), [(1, 8, 4), (2, 4, 4), (4, 2, 2), (4, 2, 0)]
)
def test_groups_of_images_do_not_depend_on_the_topology(
    processes, devices, group, shapes, tmp_path
):
    """Statistics and normaliser of `group` images, whether a device has one of them or all."""
    changes = {
        "steps": 5,
        "model__batch_norm": "batch",
        "model__batch_norm_group": group,
        "loss__group": group,
        "augment__crop__min_ious": (0.1, 0.5),
        "data__threads": 2,
    }
    config = config_of(shapes, **changes)
    alone = train_on(1, 1, config, tmp_path / "1x1")
    many = train_on(processes, devices, config, tmp_path / "many")
    assert alone.batches == many.batches
    assert_same_beginning(alone, many)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [((2, 2), (4, 2)), ((4, 1), (2, 4))])
def test_a_run_moves_to_another_topology(alone, before, after, shapes, tmp_path):
    config = config_of(shapes)
    begun = train_on(*before, config, tmp_path / "before")
    (tmp_path / "after").mkdir()
    assert_agree(alone, train_on(*after, config, stopped(begun, tmp_path / "after")))


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_evaluate_a_run(alone, processes):
    file = alone.workdir / "config.json"
    outcomes = run_processes(
        [["-m", "ssd_jax", "evaluate", "--workdir", alone.workdir, *arguments[7:]]
         for arguments in training(processes, file, alone.workdir)],
        timeout=600,
    )  # fmt: skip
    assert {each.returncode for each in outcomes} == {0}, told(outcomes)
    report = json.loads((alone.workdir / "report.json").read_text())
    (headline,) = [line for line in outcomes[0].stdout.splitlines() if line.startswith("mAP@.5")]
    found = float(headline.rpartition("= ")[2])
    assert found == pytest.approx(report["metrics"]["map_voc07"], abs=0.02)
    assert not any("mAP@.5" in each.stdout for each in outcomes[1:])
