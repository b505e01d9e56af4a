"""report.html: one file that a browser can open offline."""

import base64
import io
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from ssd_jax.config import CONFIG_FILE, flat_items
from ssd_jax.evaluation.thresholds import shown_score
from ssd_jax.files import write_text
from ssd_jax.report.collect import Run
from ssd_jax.runs.log import DIVERGED, PICTURES_FOLDER
from ssd_jax.visualize.curves import plot_curves

PAGE_FILE = "report.html"
# The name of the file that has the changes of the code since its commit.
PATCH = re.compile(r"code_[0-9a-f]+\.patch")
# (file in pictures/, title); files that a run has not drawn are left out.
PICTURE_TITLES = (
    ("curves.png", "Curves"),
    ("precision_recall.png", "Precision and recall"),
    ("errors.png", "Errors"),
    ("sizes.png", "Objects by size"),
)
EXAMPLES = (
    ("examples_best.png", "Best", "the fewest wrong detections and missed objects"),
    ("examples_worst.png", "Worst", "the most wrong detections and missed objects"),
    ("examples_most_confused.png", "Most confused", "objects taken for another class"),
    ("detections.png", "Evenly chosen", ""),
    ("augmented.png", "Training images", "as the network saw them at step 0"),
)
# The page has photographs as JPEG with this quality; the folder has the originals.
JPEG_QUALITY = 85
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff; --quiet: #646a73;
  --line: #e1e4e8; --box: #f6f7f9; --accent: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15171a; --quiet: #9aa2ad;
  --line: #30343a; --box: #1d2024; --accent: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 66rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .25rem 0; } .quiet { color: var(--quiet); }
.score { font-size: 3.5rem; font-weight: 650; line-height: 1.15; color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } th { font-weight: 600; }
td.number, th.number { text-align: right; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
pre { overflow-x: auto; padding: .75rem 1rem; background: var(--box); border-radius: 4px; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
td { overflow-wrap: break-word; } td.number { white-space: nowrap; }
.bar { display: inline-block; height: .6em; background: var(--accent); border-radius: 2px; }
.track { display: inline-block; width: 10rem; background: var(--box); border-radius: 2px; }
details { margin: .75rem 0; } summary { cursor: pointer; }
"""


class Html(str):
    """Text that is HTML already."""


def run_page(run: Run) -> str:
    """The HTML report of a run."""
    report, config = run.report, run.config
    headline = report.get("headline", "")
    protocol = report["protocol"]
    title = f"{config.model.backbone} {config.model.image_size} px on {_data_name(config)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">run {escape(run.name)}, recipe {escape(config.recipe)}, '
        f"seed {escape(str(config.seed))}, step {report['step']:,}</p>",
        f"<p><strong>{escape(run.unfinished.capitalize())}</strong></p>" if run.unfinished else "",
        f'<p class="score">{_number(_chosen(report, config))}</p>',
        f"<p>{escape(headline.split(' = ')[0])}</p>",
        f'<p class="quiet">{escape(_measured_by(protocol))}; split {escape(protocol["split"])}, '
        f"fingerprint {escape(protocol['fingerprint'] or 'not recorded')}</p>",
        "<h2>To repeat this run</h2>",
        f"<pre>{escape(report['how']['repeat'])}</pre>",
        '<p class="quiet">Give this command in the folder where the run was started, because paths '
        f"of data may be relative to it. {CONFIG_FILE}, in the folder of the run, has every "
        "setting.</p>",
        *(f"<p>{escape(note)}</p>" for note in report["how"]["repeat_notes"]),
        "<h2>Result</h2>",
        _metrics(report),
        _classes(report),
        *_pictures(run),
        "<h2>Data</h2>",
        _data(report["data"]),
        "<h2>Settings</h2>",
        _changes(report),
        _all_settings(config),
        "<h2>Initial weights</h2>",
        _weights(report["weights"]),
        "<h2>Machine and versions</h2>",
        _speed(report["how"]),
        _starts(report["how"]["starts"]),
    ]
    return document(title, parts)


def _measured_by(protocol):
    # Runs of 0.1.0 and before recorded only this.
    return str(protocol.get("headline", protocol.get("map11", "")))


def write_page(run: Run, out: pathlib.Path) -> pathlib.Path:
    """Writes report.html, the report of a run, to `out`."""
    path = out / PAGE_FILE
    write_text(path, run_page(run))
    return path


def document(title: str, parts: Iterable[str]) -> str:
    """A complete HTML page, which loads nothing from elsewhere."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; numbers are aligned right, None is a dash, all but `Html` is escaped."""
    rows = [list(row) for row in rows]
    numeric = [
        bool(rows) and all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        for i in range(len(heads))
    ]

    def cell(tag, value, is_number):
        inner = value if isinstance(value, Html) else escape(_number(value))
        return f"<{tag}{' class=number' if is_number else ''}>{inner}</{tag}>"

    head = "".join(cell("th", text, n) for text, n in zip(heads, numeric, strict=True))
    body = "".join(
        f"<tr>{''.join(cell('td', v, n) for v, n in zip(row, numeric, strict=True))}</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def picture(path: pathlib.Path, text: str, *, photograph: bool = False) -> str:
    """An image embedded in the page: a photograph as JPEG, a drawing as lossless PNG."""
    data, kind = path.read_bytes(), "png"
    if photograph:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY)
        data, kind = buffer.getvalue(), "jpeg"
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{encoded}">'


def _pictures(run):
    folder = run.workdir / PICTURES_FOLDER
    # The other pictures of an unfinished run are from an earlier time that it finished.
    drawn = [name for name, *_ in PICTURE_TITLES + EXAMPLES]
    current = ("augmented.png",) if run.unfinished else drawn
    if run.unfinished:
        yield from _curves_so_far(run.records)
    for name, title in PICTURE_TITLES:
        if name in current and (folder / name).is_file():
            yield f"<h2>{title}</h2>{picture(folder / name, title)}"
    shown = [each for each in EXAMPLES if each[0] in current and (folder / each[0]).is_file()]
    if shown:
        yield "<h2>Images</h2>"
    for name, title, text in shown:
        image = picture(folder / name, title, photograph=True)
        yield f'<h3>{title}</h3><p class="quiet">{text}</p>{image}'


def _curves_so_far(records):
    """The curves of a run that has not drawn them yet; its folder is not changed."""
    # Diverged values would squeeze the rest of the plot.
    records = [record for record in records if record["split"] != DIVERGED]
    if records:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "curves.png"
            plot_curves(records, path)
            yield f"<h2>Curves</h2>{picture(path, 'Curves')}"


def _chosen(report, config):
    return report["metrics"].get(f"map_{config.evaluate.metric}")


def _data_name(config):
    root = config.data.train.root
    return ", ".join(pathlib.PurePosixPath(part.strip()).name for part in root.split("+"))


def _metrics(report):
    rows = [(name, value) for name, value in report["metrics"].items() if "/" not in name]
    return table(("metric", "value"), rows)


def _classes(report):
    metrics, rows = report["metrics"], []
    thresholds = report.get("thresholds", {}).get("per_class", {})
    for name in report["classes"]:
        best = thresholds.get(name) or {}
        area = metrics.get(f"ap_voc12/{name}")
        width = 100 * (area or 0)
        bar = Html(
            f'<span class="track"><span class="bar" style="width:{width:.0f}%"></span></span>'
        )
        f1, precision, recall = map(best.get, ("f1", "precision", "recall"))
        worth = (f1, shown_score(best.get("score")), precision, recall)
        rows.append((name, metrics.get(f"ap_voc07/{name}"), area, bar, *worth))
    heads = ("class", "AP 11-point", "AP area", "", "best F1", "at score", "precision", "recall")
    return "<h3>Classes</h3>" + table(heads, rows) + _common_threshold(report)


def _common_threshold(report):
    common = report.get("thresholds", {}).get("all")
    if not common:
        return ""
    return (
        f'<p class="quiet">One score for all classes: {shown_score(common["score"]):.3f}, with an '
        f"F1 of {common['f1']:.3f}, a precision of {common['precision']:.3f} and a recall of "
        f"{common['recall']:.3f}.</p>"
    )


def _data(splits: Mapping[str, Mapping[str, Any]]):
    if not all("images" in facts for facts in splits.values()):
        rows = [(split, facts["fingerprint"]) for split, facts in splits.items()]
        return table(("split", "fingerprint"), rows)
    rows = []
    for split, facts in splits.items():
        left_out = ", ".join(f"{code} {count}" for code, count in facts["left_out"].items())
        found = facts.get("doctor")
        doctor = (
            "not run"
            if found is None
            else ", ".join(f"{code} {count}" for code, count in found.items()) or "nothing found"
        )
        rows.append(
            (
                split,
                facts["images"],
                facts["objects"],
                facts["fingerprint"],
                doctor,
                left_out or "nothing",
            )
        )
    return table(("split", "images", "objects", "fingerprint", "doctor", "left out"), rows)


def _changes(report):
    rows = [
        (name, str(change["recipe"]), str(change["run"]))
        for name, change in report["recipe_changes"].items()
    ]
    if not rows:
        return "<p>All settings of the recipe are unchanged.</p>"
    return "<p>Different from the recipe:</p>" + table(("setting", "recipe", "this run"), rows)


def _all_settings(config):
    rows = [(name, str(value)) for name, value in flat_items(config)]
    return f"<details><summary>All settings</summary>{table(('setting', 'value'), rows)}</details>"


def _weights(weights):
    if not weights:
        return "<p>None: the network was trained from scratch.</p>"
    rows = [(name, str(value)) for name, value in weights.items()]
    return table(("", ""), rows)


def _speed(how):
    names = {
        "images_per_second": "images per second, median",
        "data_wait": "share of the time spent waiting for data, median",
        "host_memory_gib": "peak memory of the host, GiB",
        "device_memory_gib": "peak memory of a device, GiB",
    }
    rows = [(text, how[name]) for name, text in names.items() if how.get(name) is not None]
    return table(("", ""), rows)


def _starts(starts):
    rows = []
    for start in starts:
        environment, code = start["environment"], start["code"]
        devices = environment["devices"]
        versions = {
            "python": environment["python"],
            "ssd_jax": environment["ssd_jax"],
            **environment["packages"],
            **environment.get("variables", {}),
        }
        machine = f"{devices['count']} x {devices['kind']}, {environment.get('driver', '')}; "
        machine += environment.get("processor", "")
        rows.append(
            (
                start["time"],
                start["step"],
                machine.strip(",; "),
                _code(code),
                ", ".join(f"{name} {version}" for name, version in versions.items() if version),
                _command(start),
            )
        )
    heads = ("started", "at step", "machine", "commit", "versions", "command")
    return "<h3>Starts</h3>" + table(heads, rows) + _changes_on_the_way(starts) if rows else ""


def _command(start):
    own = [f"{kind}: {name}" for kind, name in start.get("own", {}).items() if name]
    return "; ".join([start["command"] or "called from Python", *own])


def _code(code):
    if code is None:
        return ""
    commit, patch = code["commit"][:12], code.get("patch")
    if patch and PATCH.fullmatch(patch):  # a run may come from somebody else
        return Html(f'{escape(commit)} <a href="{escape(patch)}">changed</a>')
    if "not_kept" in code:
        return f"{commit} changed (the changes are not kept: {code['not_kept']})"
    return commit + " changed" * code["changed"]


def _changes_on_the_way(starts):
    rows = [
        (start["step"], name, str(change["from"]), str(change["to"]))
        for start in starts
        for name, change in start.get("changes", {}).items()
    ]
    if not rows:
        return ""
    heads = ("from step", "setting", "was", "became")
    return "<h3>Settings changed during the run</h3>" + table(heads, rows)


def _number(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
