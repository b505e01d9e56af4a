"""Measures and plots how the cost of a step, of an evaluation and of the data order grows.

    python experiments/speed/growth.py [--quick] [--config FILE] [--rounds 5] [--out DIR]

One setting grows at a time, while the others keep the values of the config; its sizes take turns.
Writes growth.jsonl, one row per figure, and growth.png; earlier rows of the same config stay there.
The dotted lines show proportional growth. --quick takes few sizes of a narrow network.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import sys
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent


class Axis(NamedTuple):
    """A setting that grows: `program` is measured at each of `sizes`."""

    program: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]


AXES = {
    "image size, px": Axis("train", (64, 128, 192, 256, 384), (64, 96, 128)),
    "images of a batch": Axis("train", (2, 4, 8, 16, 32), (2, 4, 8)),
    "objects of an image": Axis("loss", (1, 4, 16, 64, 256), (1, 8, 64)),
    "classes": Axis("evaluate", (20, 80, 250, 1000), (20, 200, 1000)),
    "images of the data set": Axis("order", (10**3, 10**4, 10**5, 10**6), (10**3, 10**4, 10**6)),
    "devices": Axis("train", (1, 2, 4, 8), (1, 2)),
}


def main():
    """Measures every axis and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(HERE.parents[1] / "configs" / "quickstart.py"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--axis", choices=AXES, action="append", help="default: all")
    options = parser.parse_args()
    from ssd_jax.caches import keep_compiled_programs

    keep_compiled_programs()
    import jax

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "growth.jsonl"
    chosen = options.axis or AXES
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    this = {"config": pathlib.Path(options.config).name, "quick": options.quick}
    rows = [row for row in rows if this.items() <= row.items()]
    for name in chosen:
        measured = [this | row for row in measure(name, options)]
        rows = [row for row in rows if row["axis"] != name] + measured
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, options.out / "growth.png")


def measure(name, options):
    """The rows of one axis, printed as well."""
    from ssd_jax.config import load_config

    axis = AXES[name]
    sizes = axis.quick if options.quick else axis.sizes
    if axis.program == "order":
        order_of_data(100)  # imports
        figures = {size: min(order_of_data(size) for _ in range(options.rounds)) for size in sizes}
    else:
        config = load_config(options.config)
        config.batch_size = config.evaluate.batch_size = 8
        config.model.batch_norm_group = 0
        if options.quick:
            config.batch_size = config.evaluate.batch_size = 4
            config.model.update({"image_size": 64, "width": 0.1})
            config.data.canvas = 64
        figures = programs(name, axis, sizes, config, options)
    rows = []
    for size, (seconds, bytes_) in figures.items():
        row = {"axis": name, "size": size, "program": axis.program, "seconds": seconds}
        rows.append(row | {"bytes": bytes_, "load": round(os.getloadavg()[0], 1)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def programs(name, axis, sizes, config, options):
    """For each size the seconds of its fastest call, and the bytes on a device."""
    import jax

    from ssd_jax.benchmark import parts, workload
    from ssd_jax.benchmark.clock import take_turns
    from ssd_jax.sharding import make_mesh

    build = {
        "train": workload.train_program,
        "evaluate": workload.evaluate_program,
        "loss": parts.loss_program,
    }[axis.program]
    made = {}
    for size in sizes:
        changed, extra, devices = config.copy_and_resolve_references(), {"classes": 20}, 1
        if name == "image size, px":
            changed.model.image_size = changed.data.canvas = size
        elif name == "images of a batch":
            changed.batch_size = size
        elif name == "objects of an image":
            extra["objects"] = size
        elif name == "classes":
            extra["classes"] = size
        else:
            devices = size  # with as many images each
            changed.batch_size *= size
        if devices <= jax.device_count():
            mesh = make_mesh(jax.devices()[:devices])
            work = workload.make_workload(changed, mesh, **extra)
            made[size] = build(work)
    seconds = take_turns({size: p.call for size, p in made.items()}, rounds=options.rounds)
    return {size: (min(seconds[size]), made[size].memory.total) for size in made}


def order_of_data(images):
    """Seconds to the first batch of a shuffled order and a hundred more; bytes that it takes."""
    from ssd_jax.data.pipeline import train_positions

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for _ in itertools.islice(train_positions(images, batch_size=16, seed=0), 101):
        pass
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return seconds, grown * (1 if sys.platform == "darwin" else 1024)


def draw(rows, path):
    """Time and memory over each size, on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    names = [name for name in AXES if any(row["axis"] == name for row in rows)]
    figure, panels = plt.subplots(
        2, len(names), figsize=(3 * len(names), 5.5), squeeze=False, layout="constrained"
    )
    for column, name in enumerate(names):
        own = [row for row in rows if row["axis"] == name]
        sizes = [row["size"] for row in own]
        for panel, word, unit, scale in zip(
            panels[:, column], ("seconds", "bytes"), ("ms", "MiB"), (1e3, 2**-20), strict=True
        ):
            values = [row[word] * scale for row in own]
            panel.plot(sizes, values, marker="o")
            # Pixels grow with the square of the side.
            power = 2 if "px" in name else 1
            line = [values[0] * (size / sizes[0]) ** power for size in sizes]
            panel.plot(sizes, line, ":", color="grey")
            panel.set_xscale("log", base=2 if max(sizes) < 1000 else 10)
            if min(values) > 0:
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.set_ylabel(f"{own[0]['program']}, {unit}")
        panels[1, column].set_xlabel(name)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
