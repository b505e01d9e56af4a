"""From the reports of finished runs to results.jsonl, and from that to the table and its figures.

python experiments/voc_table/tables.py DIR      # rewrites them from DIR/results.jsonl
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from ssd_jax.config import default_config, flat_items
from ssd_jax.errors import UserError
from ssd_jax.files import whole_file, write_text
from ssd_jax.recipes import HARDWARE
from ssd_jax.runs.same_run import DATA_ROOTS
from ssd_jax.visualize.style import PALETTE, plot_style, save_plot

RESULTS_FILE, TABLE_FILE = "results.jsonl", "table.md"
# Metrics of report.json, with what the table calls them.
PROTOCOLS = {
    "map_voc07": "VOC07, 11-point",
    "map_voc12": "VOC10 on, area",
    "map_voc07_difficult_counted": "11-point, difficult counted",
    "map_voc12_difficult_counted": "area, difficult counted",
    "map_mxnet": "mxnet-ssd's own",
    "map_coco": "COCO",
}
HEADLINE = "map_voc07"  # the protocol of the published numbers
# Short names of the other protocols; * counts difficult objects.
SHORT = {
    "map_voc12": "area",
    "map_voc07_difficult_counted": "11pt*",
    "map_voc12_difficult_counted": "area*",
    "map_mxnet": "mxnet",
    "map_coco": "COCO",
}
OURS, PUBLISHED = PALETTE[:2]


class Spread(NamedTuple):
    """Mean, lowest and highest of a value over the seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def record(report: pathlib.Path) -> dict[str, Any]:
    """The values of a run that the table needs, from its report.json (docs/reports.md)."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{report} cannot be read ({error}). Start its run again.") from error
    config, val = content["config"], content["curves"]["val"]
    last = content["how"]["starts"][-1]
    epochs_per_step = config["batch_size"] / content["data"]["train"]["images"]
    return {
        "seed": content["seed"],
        "settings": _settings(config),
        "recipe": config["recipe"],
        "backbone": config["model"]["backbone"],
        "image_size": config["model"]["image_size"],
        "batch_size": config["batch_size"],
        "learning_rate": config["optimizer"]["learning_rate"],
        "metrics": content["metrics"],
        "classes": content["classes"],
        "protocol": content["protocol"],
        "curve": {
            "epochs": [step * epochs_per_step for step in val.get("step", ())],
            HEADLINE: val.get(HEADLINE, []),
        },
        "training_images": content["data"]["train"]["images"],
        "images_per_second": content["how"]["images_per_second"],
        "devices": last["environment"]["devices"],
        "code": last["code"],
    }


def _settings(config: dict[str, Any]) -> str:
    """A digest of the settings that the runs of a row have in common."""
    # A setting that did not exist yet had today's default.
    settings = dict(flat_items(default_config())) | flatten_dict(config, sep=".")
    shared = settings.keys() - {"seed", *HARDWARE, *DATA_ROOTS}
    text = json.dumps([(name, settings[name]) for name in sorted(shared)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(records: Sequence[dict[str, Any]], out: pathlib.Path) -> str:
    """Writes results.jsonl, table.md and the figures to `out`; returns the text of the table."""
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(each) + "\n" for each in records)
    write_text(out / RESULTS_FILE, lines)
    text = markdown(records)
    write_text(out / TABLE_FILE, text)
    if records:
        draw_table(records, out / "table.png")
        draw_curves(records, out / "curves.png")
        draw_classes(records, out / "classes.png")
    return text


def by_row(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each row, in the order of the rows."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in records:
        rows.setdefault(each["row"], []).append(each)
    return rows


def spread(runs: Sequence[dict[str, Any]], metric: str) -> Spread | None:
    """The spread of a metric over the runs that have it; None for a class without objects."""
    values = [run["metrics"].get(metric) for run in runs]
    values = [value for value in values if value is not None]
    if not values:
        return None
    return Spread(statistics.fmean(values), min(values), max(values), len(values))


# ---- Markdown ----


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The table, the average precision by class, and notes on both."""
    if not records:
        return "No run has finished yet.\n"
    rows = by_row(records)
    parts = [
        "# PASCAL VOC: published and ours",
        f"mAP{_threshold(records)} of the {_told(records, 'checkpoint')} checkpoint: mean over the "
        "seeds [lowest, highest]. The difference is "
        f"that of {PROTOCOLS[HEADLINE]}, difficult objects ignored, to the published number.",
        _table(
            ("row", "batch", "rate", "seeds", "published", PROTOCOLS[HEADLINE], "difference",
             *(name for metric, name in PROTOCOLS.items() if metric != HEADLINE)),
            [_row(name, runs) for name, runs in rows.items()],
        ),
        "\n".join(f"- {note}" for note in notes(records)),
        f"## By class: {PROTOCOLS[HEADLINE]}",
        _table(
            ("class", *rows),
            [(name, *(_text(spread(runs, f"ap_voc07/{name}")) for runs in rows.values()))
             for name in records[0]["classes"]],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _row(name, runs):
    first, ours = runs[0], spread(runs, HEADLINE)
    return (
        name,
        first["batch_size"],
        f"{first['learning_rate']:g}",
        len(runs),
        f"{first['published']:.3f}",
        _text(ours),
        f"{ours.mean - first['published']:+.3f}" if ours else "-",
        *(_text(spread(runs, metric)) for metric in PROTOCOLS if metric != HEADLINE),
    )


def notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """The sources of the published numbers, what was measured, and why it may not be comparable."""
    found = []
    for source in dict.fromkeys(each["source"] for each in records):
        names = [name for name, runs in by_row(records).items() if runs[0]["source"] == source]
        found.append(f"Published, {', '.join(names)}: {source}.")
    measured: dict[str, list[str]] = {}
    for each in records:
        measured.setdefault(_how(each["protocol"]), []).append(each["row"])
    for how, names in measured.items():
        which = f", {', '.join(dict.fromkeys(names))}:" if len(measured) > 1 else ""
        found.append(f"Measured{which} {how}.")
    if len(measured) > 1:
        found.append(
            "**Not comparable: the runs were measured on different images or objects, or in "
            "different ways.**"
        )
    for name, runs in by_row(records).items():
        if len({run.get("settings") for run in runs}) > 1:
            found.append(f"**Not comparable: the runs of {name} have different settings.**")
    trained = sorted({(each["training_images"], each["image_size"]) for each in records})
    found += [f"Trained on {images:,} images at {size} px." for images, size in trained]
    devices = {f"{d['count']} x {d['kind']}" for each in records for d in [each["devices"]]}
    found.append(f"Devices of a run: {', '.join(sorted(devices))}.")
    return found


def _how(protocol):
    return (
        f"on {protocol['images']:,} images: {', '.join(protocol['image_sets'])} of "
        f"{protocol['root']}, fingerprint {protocol['fingerprint']}, of the "
        f"{protocol['checkpoint']} checkpoint at an IoU of {protocol['iou_threshold']:g}"
    )


def _told(records, name):
    """A value of the runs' protocols; more than one if settings were mixed."""
    return " or ".join(sorted({f"{each['protocol'][name]}" for each in records}))


def _threshold(records):
    """E.g. "@.5"."""
    return "@" + _told(records, "iou_threshold").replace("0.", ".")


def _table(head, rows):
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _text(value):
    return "-" if value is None else str(value)


# ---- figures ----


def draw_table(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Published: diamonds. Ours: one dot per seed, the mean, and a bar from lowest to highest.

    The numbers and the means of the other protocols are printed next to them.
    """
    rows = by_row(records)
    with _picture(path, 14, 1.5 + 0.45 * len(rows)) as figure:
        axes = figure.subplots()
        for place, runs in enumerate(rows.values()):
            published, ours, values = _values(runs)
            axes.plot(published, place, "D", ms=9, mfc="none", mec=PUBLISHED, label="published")
            if ours is None:
                continue
            axes.plot((ours.low, ours.high), (place, place), color=OURS, lw=3, alpha=0.4)
            axes.plot(values, [place] * len(values), "o", ms=4, color=OURS, alpha=0.6)
            axes.plot(
                ours.mean, place, "|", ms=16, mew=2.5, color=OURS, label="ours, mean of seeds"
            )
            axes.text(
                1.02,
                place,
                f"{ours!s:24}{ours.mean - published:+.3f}    {_other_means(runs)}",
                transform=axes.get_yaxis_transform(),
                va="center",
                family="monospace",
            )
        axes.text(
            1.02,
            1.02,
            "ours [lowest, highest]  difference" + "".join(f"{n:>8}" for n in SHORT.values()),
            transform=axes.transAxes,
            va="bottom",
            family="monospace",
        )
        labels = [f"{name} ({_count(len(runs), 'seed')})" for name, runs in rows.items()]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(
            f"mAP{_threshold(records)}, {PROTOCOLS[HEADLINE]}, difficult ignored (* counted)"
        )
        handles, names = axes.get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        figure.legend(once.values(), once, loc="outside upper left", ncols=2)


def _other_means(runs: Sequence[dict[str, Any]]) -> str:
    means = (spread(runs, metric) for metric in SHORT)
    return "".join(f"{f'{each.mean:.3f}' if each else '-':>8}" for each in means)


def draw_curves(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """mAP over the epochs: the mean over the seeds in a band from lowest to highest."""
    rows = by_row(records)
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    with _picture(path, 1 + 3 * columns, 0.6 + 2.4 * lines) as figure:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, runs) in zip(grid, rows.items(), strict=False):
            axes.set_title(name, fontsize="medium")
            axes.axhline(runs[0]["published"], color=PUBLISHED, ls="--", lw=1, label="published")
            points: dict[float, list[float]] = {}
            for run in runs:
                for epoch, value in zip(
                    run["curve"]["epochs"], run["curve"][HEADLINE], strict=True
                ):
                    if value is not None:
                        points.setdefault(epoch, []).append(value)
            epochs = sorted(points)
            low, mean, high = (
                [summary(points[epoch]) for epoch in epochs]
                for summary in (min, statistics.fmean, max)
            )
            axes.fill_between(epochs, low, high, color=OURS, alpha=0.3, lw=0)
            axes.plot(epochs, mean, ".-", color=OURS, label="ours")
        grid[0].set_ylim(0, 1)  # of all of them
        for axes in grid[max(0, len(rows) - columns) : len(rows)]:
            axes.tick_params(labelbottom=True)
        for axes in grid[len(rows) :]:
            axes.remove()
        grid[0].legend()
        figure.supxlabel("epochs", fontsize="medium")
        figure.supylabel(f"mAP{_threshold(records)}, {PROTOCOLS[HEADLINE]}", fontsize="medium")


def draw_classes(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """The mean over the seeds of each row and class; a class without objects stays empty."""
    rows, classes = by_row(records), records[0]["classes"]
    means = [[spread(runs, f"ap_voc07/{name}") for name in classes] for runs in rows.values()]
    known = [each.mean for line in means for each in line if each is not None]
    with _picture(path, 3 + 0.5 * len(classes), 2 + 0.36 * len(rows)) as figure:
        axes = figure.subplots()
        shown = axes.imshow(
            [[float("nan") if each is None else each.mean for each in line] for line in means],
            vmin=min(known, default=0),
            vmax=max(known, default=1),
            cmap="cividis",
            aspect="auto",
        )
        for y, line in enumerate(means):
            for x, each in enumerate(line):
                if each is not None:
                    axes.text(
                        x,
                        y,
                        f"{each.mean:.2f}".removeprefix("0"),
                        ha="center",
                        va="center",
                        fontsize="small",
                        color="black" if shown.norm(each.mean) > 0.5 else "white",
                    )
        axes.set_xticks(
            range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(f"AP{_threshold(records)}, {PROTOCOLS[HEADLINE]}, mean over the seeds")
        axes.grid(visible=False)
        figure.colorbar(shown, pad=0.01)


def _values(runs):
    """The published value, our spread over the seeds, and the value of each seed."""
    values = [run["metrics"][HEADLINE] for run in runs]
    return runs[0]["published"], spread(runs, HEADLINE), values


def _count(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _picture(path, width, height):
    """A figure to draw on, which is then written to a file."""
    with plot_style() as new_figure:
        figure = new_figure(width, height)
        yield figure
        with whole_file(path) as part:
            save_plot(figure, part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the table and figures from results.jsonl."""
    parser = argparse.ArgumentParser(description=f"Writes table and figures from {RESULTS_FILE}.")
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="the --out of run.py")
    options = parser.parse_args(arguments)
    try:
        print(write(read_results(options.folder / RESULTS_FILE), options.folder))
    except (UserError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_results(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records that `write` left."""
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the --out of run.py, which writes it.")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read ({error}), expected one JSON object per line. Write it again "
            "from the runs with run.py --collect."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
