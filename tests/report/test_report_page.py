"""The pages: whole, without a network, and right in a real browser."""

import contextlib
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_runs import make_run, make_unfinished_run

from ssd_jax.cli import main
from ssd_jax.report import compare
from ssd_jax.report.collect import open_run
from ssd_jax.report.compare import (
    differing_settings,
    flat_records,
    markdown,
    run_names,
    warnings,
    write_comparison,
)
from ssd_jax.report.page import run_page, table
from ssd_jax.report.starts import read_starts, record_start
from ssd_jax.visualize import curves

VOID = ("meta", "img", "br")


class Tags(html.parser.HTMLParser):
    """Fails on a tag that is not closed, and collects what is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "pets", score=0.625)


def test_nothing_in_a_run_of_somebody_else_becomes_html(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seed": "<script>alert(1)</script>"}))
    record_start(folder, step=0, weights=None, data={})
    run = open_run(folder)
    (start,) = run.report["how"]["starts"]
    start["code"] = {"commit": "c0ffee", "changed": True, "patch": "javascript:alert(2)"}
    page = run_page(run._replace(unfinished="<script>alert(3)</script>"))
    assert "c0ffee" in page
    assert "<script>alert" not in page
    assert "javascript:" not in page


def test_the_page_of_a_run_is_whole_and_fetches_nothing(folder):
    page = run_page(open_run(folder))
    tags = read(page)
    assert len(tags.fetched) == 2
    assert all(f.startswith("data:image/") for f in tags.fetched)
    for text in (
        "vgg16 300 px on pets",
        "0.625",
        "VOC07 11-point, 5 images",
        "pets/config.json --workdir ",
        "&lt;dog&gt;",
        "D101 2",
    ):
        assert text in page, text
    assert "<dog>" not in page


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (None, ""),
        ({"commit": 40 * "a", "changed": False}, "aaaaaaaaaaaa"),
        ({"commit": 40 * "a", "changed": True}, "aaaaaaaaaaaa changed"),  # of an earlier version
        (
            {"commit": 40 * "a", "changed": True, "patch": "code_1.patch"},
            'aaaaaaaaaaaa <a href="code_1.patch">changed</a>',
        ),
        (
            {"commit": 40 * "a", "changed": True, "patch": None, "not_kept": "2.0 MB"},
            "aaaaaaaaaaaa changed (the changes are not kept: 2.0 MB)",
        ),
    ],
)
def test_the_page_leads_to_what_differs_from_the_commit(code, shown, folder):
    environment = {"devices": {"count": 1, "kind": "cpu"}, "python": "3", "ssd_jax": "0"}
    start = {"time": "", "step": 0, "command": None, "code": code}
    report = json.loads((folder / "report.json").read_text())
    report["how"]["starts"] = [start | {"environment": environment | {"packages": {}}}]
    (folder / "report.json").write_text(json.dumps(report))
    assert f"<td>{shown}</td>" in run_page(open_run(folder))


def test_the_page_says_from_which_score_on_detections_are_right(folder):
    page = run_page(open_run(folder))
    cells = "".join(f"<td class=number>{x}</td>" for x in ("0.688", "0.437", "0.562", "0.938"))
    assert cells in page
    assert "One score for all classes: 0.375, with an F1 of 0.812" in page
    report = json.loads((folder / "report.json").read_text())
    del report["thresholds"]  # as before there were any
    (folder / "report.json").write_text(json.dumps(report))
    assert "One score" not in run_page(open_run(folder))


def test_drawings_stay_sharp_and_photographs_become_small(folder):
    fetched = read(run_page(open_run(folder))).fetched
    assert [re.match(r"data:image/(\w+)", each)[1] for each in fetched] == ["png", "jpeg"]
    comparison = write_comparison([open_run(folder)], folder / "out").read_text()
    assert read(comparison).fetched[0].startswith("data:image/png")


def test_numbers_stand_right_and_nothing_is_a_dash():
    text = table(("name", "value"), [("a<b", 0.25), ("c", None)])
    assert "<td>a&lt;b</td>" in text
    assert "<td class=number>0.250</td>" in text
    assert "<td class=number>-</td>" in text


def test_only_what_differs_is_compared(tmp_path):
    a, b = (
        open_run(make_run(tmp_path / name, score=score, batch_size=size))
        for name, score, size in (("a", 0.5, 8), ("b", 0.75, 16))
    )
    assert differing_settings([a, b]) == {"batch_size": [8, 16]}
    assert warnings([a, b]) == []
    assert markdown([a, b]).splitlines() == [
        "| | a | b |",
        "| --- | --- | --- |",
        "| map_voc07 | 0.5000 | 0.7500 |",
        "| map_voc12 | - | - |",
        "| `batch_size` | `8` | `16` |",
    ]
    page = write_comparison([a, b], tmp_path / "out").read_text()
    read(page)
    assert "<td class=number>0.750</td>" in page
    assert "batch_size" in page


def test_what_the_starts_recorded_makes_runs_differ_like_settings(tmp_path):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("abcd")]
    changes = {"epochs": (6.0, 8.0), "data.cache": ("none", "ram"), "steps": (None, 9)}
    for run, words in zip(runs, ({}, {"own": {"loss": "calm", "augment": None}},
                                 {"changes": changes, "step": 40}, {}), strict=True):  # fmt: skip
        record_start(run, **{"step": 0, "weights": None, "data": {}} | words)
        if "changes" in words:  # and again before the next step
            record_start(run, step=40, weights=None, data={}, changes={"epochs": (8.0, 9.0)})
        report = json.loads((run / "report.json").read_text())
        report["how"]["starts"] = read_starts(run)
        report["data"]["train"]["fingerprint"] = "other" if run.name == "d" else "f00"
        (run / "report.json").write_text(json.dumps(report))
    opened = [open_run(run) for run in runs]
    assert [len(group) for group in compare.group_by_seed(opened)] == [1, 1, 1, 1]
    assert differing_settings(opened) == {
        "seed": [0, 1, 2, 3],
        "fingerprint of train": ["f00", "f00", "f00", "other"],
        "own loss": [None, "calm", None, None],
        "epochs until step 40": [None, None, 6.0, None],
        "steps until step 40": [None, None, "not set", None],
    }


def test_texts_fit_into_the_cells_of_a_table(tmp_path):
    places = ("", "weights/v|x.npz")
    runs = [open_run(make_run(tmp_path / str(i), weights__path=p)) for i, p in enumerate(places)]
    assert markdown(runs).splitlines()[-1] == r"| `weights.path` |  | `weights/v\|x.npz` |"


def seeds_and_another(folder):
    """Three seeds of one setting, one of another, and one that is still running."""
    made = [
        make_run(folder / f"seed{seed}", score=score, seed=seed)
        for seed, score in enumerate((0.5, 0.75, 0.625))
    ]
    made.insert(1, make_run(folder / "fast", score=0.25, optimizer__learning_rate=0.5))
    made.append(make_unfinished_run(folder / "late", map_voc07=0.125, seed=3))
    return [open_run(each) for each in made]


def test_runs_that_differ_in_their_seed_only_are_one_column(tmp_path):
    runs = seeds_and_another(tmp_path)
    assert markdown(runs).splitlines() == [
        "| | seed0 .. seed2 | fast | late (unfinished, step 15) |",
        "| --- | --- | --- | --- |",
        "| runs | 3 | 1 | 1 |",
        "| map_voc07 | 0.6250 [0.5000, 0.7500] | 0.2500 | 0.1250 |",
        "| map_voc12 | - | - | - |",
        "| `optimizer.learning_rate` | `0.001` | `0.5` | `0.001` |",
        "| `seed` | `0, 1, 2` | `0` | `3` |",
        "| `fingerprint of train` | `f00` | `f00` | `None` |",
    ]
    page = write_comparison(runs, tmp_path / "out").read_text()
    read(page)
    assert "0.625 [0.500, 0.750]" in page
    assert "late (unfinished, step 15)" in page


def test_how_a_run_was_computed_opens_no_column_of_its_own(tmp_path):
    changes = ({"seed": 0}, {"seed": 1, "data__cache": "ram", "log_every_steps": 7})
    runs = [open_run(make_run(tmp_path / str(i), **each)) for i, each in enumerate(changes)]
    lines = markdown(runs).splitlines()
    assert lines[0] == "| | 0, 1 |"
    assert "| `data.cache` | `none, ram` |" in lines


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("iou_threshold", (0.5, 0.75), "at other IoU thresholds: 0.5, 0.75"),
        ("image_fingerprint", ("a", "b"), "on images of the same names with other bytes: a, b"),
        ("image_fingerprint", ("a", None), ""),  # the doctor was not asked
    ],
)
def test_what_keeps_two_runs_from_being_compared_is_told(tmp_path, name, values, text):
    runs = [open_run(make_run(tmp_path / str(i))) for i in range(2)]
    for run, value in zip(runs, values, strict=True):
        run.report["protocol"][name] = value
    assert warnings(runs) == ([f"measured {text}"] if text else [])


def test_images_of_other_data_are_not_called_the_same(tmp_path):
    runs = [open_run(make_run(tmp_path / str(i))) for i in range(2)]
    for run, value in zip(runs, "ab", strict=True):
        run.report["protocol"] |= {"fingerprint": value, "image_fingerprint": value}
    assert warnings(runs) == ["measured on other images or objects: a, b"]


def test_the_curve_of_some_seeds_is_their_mean_in_a_band(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_plot", lambda figure, path: figures.append(figure))
    runs = [
        [{"step": step, "split": "train", "loss": loss} for step in range(1, last)]
        for loss, last in ((1.0, 4), (2.0, 9))
    ]
    curves.plot_runs([("a, b", runs), ("a", runs[:1])], tmp_path / "a.png")
    axes = figures[0].axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[1, 1.5], [2, 1.5], [3, 1.5]],  # the steps that all have come to
        [[1, 1], [2, 1], [3, 1]],
    ]
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).get_points().tolist() == [[1, 1], [3, 2]]


def test_seeds_that_logged_at_other_steps_are_interpolated(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_plot", lambda figure, path: figures.append(figure))
    runs = [
        [{"step": step, "split": "train", "loss": step / 10} for step in steps]
        for steps in ((10, 20, 30), (7, 14, 21, 28, 30))
    ]
    curves.plot_runs([("a, b", runs)], tmp_path / "a.png")
    (line,) = figures[0].axes[0].lines
    assert line.get_xydata().ravel() == pytest.approx([10, 1, 20, 2, 30, 3])


def test_runs_as_lines_that_pandas_reads(tmp_path, capsys):
    folders = [run.place for run in seeds_and_another(tmp_path)]
    table = tmp_path / "tables/runs.jsonl"
    assert main(["report", "compare", *folders, "--json", str(table)]) == 0
    records = [json.loads(line) for line in table.read_text().splitlines()]
    assert [record["run"] for record in records] == ["seed0", "fast", "seed1", "seed2", "late"]
    fast, late = records[1], records[-1]
    assert (fast["optimizer.learning_rate"], fast["seed"], fast["map_voc07"]) == (0.5, 0, 0.25)
    assert (late["unfinished"], late["step"], late["map_voc07"]) == (True, 12, 0.125)
    assert "batch_size" not in fast
    assert not any(isinstance(value, list | dict) for value in fast.values())


def test_the_lines_of_runs_are_the_last_that_is_printed(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["report", "compare", str(folder), "--out", "out", "--json", "-"]
    assert main(words) == 0
    *_, place, last = capsys.readouterr().out.splitlines()
    assert (place, json.loads(last)["run"]) == ("out/comparison.html", "pets")
    assert not (tmp_path / "-").exists()


def test_files_are_written_before_anything_is_printed(folder, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with contextlib.suppress(BrokenPipeError):
        main(["report", "compare", str(folder), "--json", str(tmp_path / "runs.jsonl")])
    assert (tmp_path / "runs.jsonl").is_file()


def test_a_setting_of_several_values_is_one_text(tmp_path):
    runs = [
        open_run(make_run(tmp_path / str(n), optimizer__decay_epochs=(n, n + 1))) for n in (1, 2)
    ]
    assert flat_records(runs)[1]["optimizer.decay_epochs"] == "(2, 3)"


def test_the_page_of_an_unfinished_run_says_so(tmp_path):
    folder = make_unfinished_run(tmp_path / "pets", map_voc07=0.375)
    assert main(["report", "page", "--workdir", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    (curves,) = read(page).fetched
    assert curves.startswith("data:image/png")
    for text in ("Unfinished, step 15", "step 12", "0.375", "&lt;dog&gt;"):
        assert text in page, text
    assert not list((folder / "pictures").iterdir())  # it is read, and may belong to others
    (folder / "metrics.jsonl").unlink()
    assert main(["report", "page", "--workdir", str(folder)]) == 0


def test_a_run_that_goes_on_shows_no_pictures_of_its_former_end(folder):
    record_start(folder, step=10, weights=None, data={})
    page = run_page(open_run(folder))
    assert page.count("data:image/") == 1
    assert "Worst" not in page


def test_a_run_that_was_evaluated_once_is_a_point_among_the_curves(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_plot", lambda figure, path: figures.append(figure))
    records = [{"step": step, "split": "train", "loss": 1.0} for step in range(100)]
    records += [{"step": 6, "split": "val", "map_voc07": 0.5}]
    curves.plot_runs([("a", [records])], tmp_path / "a.png")
    assert [axes.lines[0].get_marker() for axes in figures[0].axes] == ["None", "o"]


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [Path("a/seed0"), Path("b/seed0"), Path("b/seed1")]
    runs = [open_run(make_run(path, batch_size=n)) for n, path in enumerate(folders, 1)]
    assert markdown(runs).startswith("| | a/seed0 | b/seed0 | seed1 |\n")
    drawn = []
    monkeypatch.setattr(compare, "plot_runs", lambda curves, path: drawn.extend(curves))
    monkeypatch.setattr(compare, "picture", lambda *_: "")
    page = write_comparison(runs, tmp_path / "out").read_text()
    assert [name for name, _ in drawn] == run_names(runs) == ["a/seed0", "b/seed0", "seed1"]
    assert "<th class=number>b/seed0</th>" in page


def test_a_run_of_another_version_can_be_looked_at(tmp_path):
    old, new = (make_run(tmp_path / name) for name in ("old", "new"))
    settings = json.loads((old / "config.json").read_text())
    settings["loss"]["of_old"] = 0.5
    (old / "config.json").write_text(json.dumps(settings))
    assert "loss.of_old" in run_page(open_run(old))
    for runs in ((old, new), (new, old)):
        assert list(differing_settings([open_run(run) for run in runs])) == ["loss.of_old"]


def test_figures_of_other_images_are_not_compared_in_silence(tmp_path):
    runs = [open_run(make_run(tmp_path / name, fingerprint=name)) for name in ("a", "b")]
    assert "other images or objects: a, b" in markdown(runs)


def test_the_verbs(folder, capsys):
    assert main(["report", "page", "--workdir", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert main(["report", "compare", str(folder), str(folder)]) == 0
    assert "| map_voc07 | 0.6250 | 0.6250 |" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("chromium"), reason="Debian's chromium is not installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_without_a_sideways_scroll(folder, tmp_path, width):
    page = run_page(open_run(folder))
    probe = "<script>document.title = [document.documentElement.scrollWidth, innerWidth, "
    probe += "[...document.images].every(i => i.naturalWidth > 0)].join()</script>"
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{probe}</body>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    title = re.search(r"<title>(\d+),(\d+),(\w+)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    scroll, inner, images = title.groups()
    assert int(scroll) <= int(inner)
    assert images == "true"
