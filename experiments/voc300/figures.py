"""The results of finished runs: rows, a table, curves, the ablation."""

import json
import pathlib
import statistics
import textwrap
from typing import Any

import numpy as np
from arms import RATES, Arm, Scale, arms, folder_name

from ssd_jax.runs.log import REPORT_FILE
from ssd_jax.visualize.style import INK, PALETTE, plot_style, save_plot


def collect(runs: pathlib.Path, scale: Scale) -> list[dict[str, Any]]:
    """A row for each finished run, in the order of the arms."""
    rows = []
    for name, arm in arms(scale).items():
        for workdir in sorted(runs.glob(f"{folder_name(name)}-*")):
            if (workdir / REPORT_FILE).is_file():
                rows.append(row_of(name, arm, json.loads((workdir / REPORT_FILE).read_text())))
    return rows


def told_before(out: pathlib.Path, scale: Scale) -> list[dict[str, Any]]:
    """The rows of an earlier results.jsonl whose arms have not changed since."""
    path = out / "results.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    now = {name: json.loads(json.dumps(dict(arm.changes))) for name, arm in arms(scale).items()}
    return [row for row in rows if now.get(row["arm"]) == row["changes"]]


def merged(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], scale: Scale
) -> list[dict[str, Any]]:
    """`rows`, and `others` for the other runs, in the order of the arms and seeds.

    Those of `others` that were measured on other photos are left out.
    """
    names = list(arms(scale))
    photos = {_photos(row) for row in rows}
    if left_out := [row for row in others if photos and _photos(row) not in photos]:
        print(f"left out: {len(left_out)} earlier results on other photos")
        others = [row for row in others if _photos(row) in photos]
    both = {(row["arm"], row["seed"]): row for row in (*others, *rows)}
    return [both[key] for key in sorted(both, key=lambda key: (names.index(key[0]), key[1]))]


def _photos(row: dict[str, Any]) -> tuple[int, str]:
    return row["val_images"], row["val_fingerprint"]


def row_of(name: str, arm: Arm, report: dict[str, Any]) -> dict[str, Any]:
    """The row of a run in results.jsonl."""
    row = {
        "arm": name,
        "seed": report["seed"],
        "changes": dict(arm.changes),
        "step": report["step"],
        "val_images": report["protocol"]["images"],
        "val_fingerprint": report["protocol"]["fingerprint"],
        **{key: report["metrics"][key] for key in ("map_voc07", "map_voc12", "map_coco")},
    }
    if arm.weights_of:
        return row | {"weights_of": arm.weights_of}
    start = report["how"]["starts"][0]
    return row | {
        "train_images": report["data"]["train"]["images"],
        "batch_size": report["config"]["batch_size"],
        "image_size": report["config"]["model"]["image_size"],
        "device": start["environment"]["devices"],
        "commit": (start["code"] or {}).get("commit"),  # None outside a git clone
        "images_per_second": report["how"]["images_per_second"],
        "curve": {key: report["curves"]["val"][key] for key in ("step", "map_voc07")},
    }


def tell(rows: list[dict[str, Any]], scale: Scale, out: pathlib.Path) -> None:
    """Writes results.jsonl, the table and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = table(rows, scale)
    (out / "table.md").write_text(text)
    print(f"\n{text}\nin {out}")
    draw_curves(rows, scale, out / "curves.png")
    draw_ablation(rows, scale, out / "ablation.png")


def by_arm(rows: list[dict[str, Any]], key: str = "map_voc07") -> dict[str, dict[int, float]]:
    """arm -> seed -> value."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row["arm"], {})[row["seed"]] = row[key]
    return values


def differences(values: dict[str, dict[int, float]], base: str) -> dict[str, list[float]]:
    """arm -> its differences from `base` with the same seed."""
    own = values.get(base, {})
    found = {
        arm: [value - own[seed] for seed, value in sorted(seeds.items()) if seed in own]
        for arm, seeds in values.items()
        if arm != base
    }
    return {arm: several for arm, several in found.items() if several}


def described(scale: Scale) -> str:
    """One line that describes the experiment."""
    train, val = scale.train or "all", scale.val or "all"
    images = f"{train} images" if train == val else f"{train} + {val} images"
    frozen = f", {scale.frozen} of VGG16 not trained" if scale.frozen else ""
    return (
        f"{scale.name}: SSD-VGG16 at {scale.image_size} px, {images}, {scale.epochs:g} epochs, "
        f"batch {scale.batch_size}{frozen}"
    )


def table(rows: list[dict[str, Any]], scale: Scale) -> str:
    """Markdown: mean over seeds [lowest, highest] in percent, and the difference from `best`."""
    columns = [by_arm(rows, key) for key in ("map_voc07", "map_voc12", "map_coco")]
    against = differences(columns[0], "best")
    lines = [
        f"{described(scale)}. Last checkpoint, validation images, percent, mean over seeds "
        "[lowest, highest]; the difference is between runs of the same seed.",
        "",
        "| arm | seeds | mAP@.5, VOC07 11-point | VOC12 area | COCO AP | against best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, seeds in columns[0].items():
        cells = [spread(list(column[arm].values())) for column in columns]
        difference = spread(against[arm], "+.1f") if arm in against else ""
        lines.append(f"| {arm} | {len(seeds)} | {' | '.join(cells)} | {difference} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean [lowest, highest] in percent."""
    mean, low, high = (
        format(100 * each, form) for each in (statistics.fmean(values), min(values), max(values))
    )
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def draw_curves(rows: list[dict[str, Any]], scale: Scale, path: pathlib.Path) -> None:
    """mAP over epochs of the recipes: the mean over seeds, in a band from lowest to highest."""
    with plot_style() as new_figure:
        figure = new_figure(8, 4.5)
        axes = figure.subplots()
        for name, color in zip(RATES, PALETTE, strict=False):
            own = [row for row in rows if row["arm"] == name]
            if not own:
                continue
            steps = np.array(own[0]["curve"]["step"])
            epochs = steps * own[0]["batch_size"] / own[0]["train_images"]
            # Runs of other versions were evaluated a step earlier or later.
            curves = 100 * np.array(
                [np.interp(steps, row["curve"]["step"], row["curve"]["map_voc07"]) for row in own]
            )
            lowest, highest = curves.min(axis=0), curves.max(axis=0)
            axes.fill_between(epochs, lowest, highest, color=color, alpha=0.2)
            label = f"{name}, {len(own)} seed{'s' if len(own) > 1 else ''}"
            axes.plot(epochs, curves.mean(axis=0), "o-", color=color, markersize=3, label=label)
        axes.set(xlabel="epoch", ylabel="mAP@.5, VOC07 11-point, percent")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_title(textwrap.fill(described(scale), 80), fontsize="medium")
        if axes.lines:
            axes.legend(loc="upper left")
        save_plot(figure, path)


def draw_ablation(rows: list[dict[str, Any]], scale: Scale, path: pathlib.Path) -> None:
    """The difference of each arm from `best`: one dot per seed, and a bar to the mean."""
    against = differences(by_arm(rows), "best")
    with plot_style() as new_figure:
        figure = new_figure(8, 1.6 + 0.34 * len(against))
        axes = figure.subplots()
        for place, values in enumerate(against.values()):
            mean = statistics.fmean(values)
            color = PALETTE[0] if mean >= 0 else PALETTE[1]
            axes.barh(place, 100 * mean, color=color, alpha=0.35, height=0.6)
            axes.plot(100 * np.array(values), [place] * len(values), "o", color=color, markersize=5)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(against)), list(against))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(
            "difference from best with the same seed, points of mAP@.5 (VOC07 11-point)"
        )
        axes.set_title(textwrap.fill(described(scale), 60), fontsize="medium")
        save_plot(figure, path)
