"""How training scales: measured on this machine, modelled beyond it, and compared with claims.

    python experiments/scaling/measure.py [--config FILE] [--images 8] [--steps 8] [--rounds 3]

Every layout of processes and devices is measured in processes of its own, with the same number of
images per device. Without an accelerator a device is a core, and processes are pinned to their
cores. Writes results.jsonl, one row per figure, and scaling.png to --out.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
# Bytes a second that a machine sends to others, in one direction.
NETWORKS = {f"{gigabits} Gb/s": gigabits * 1e9 / 8 for gigabits in (100, 200, 400)}
NVLINK = 450e9  # of a GPU, one direction: NVLink 4, half of NVIDIA's 900 GB/s for both
GPUS_A_MACHINE = 8
BACKWARD = 2 / 3  # of a step: the part during which gradients can already be sent
# Not measured. SSD512-ResNet50, 64 images a GPU, bfloat16: an H200's coarse roofline for this
# network, times the 0.70 of it that the best published XLA runs reach, is 1400 images a second.
STATED = {"network": "SSD512-ResNet50", "images": 64, "step_seconds": 64 / 1400, "bytes": 145.8e6}
# What Amazon claimed for the original: p2.8xlarge, ResNet-50.
CLAIMS = {1: 1.0, 2: 1.8, 4: 3.6}


def main():
    """Measures, models and draws; as a worker, runs one process of a layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(HERE.parents[1] / "configs" / "quickstart.py"))
    parser.add_argument("--images", type=int, default=8, help="images per device")
    parser.add_argument("--steps", type=int, default=8, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--worker", nargs=3, metavar=("COORDINATOR", "PROCESSES", "PROCESS"))
    options = parser.parse_args()
    if options.worker:
        return work(options)
    rows = measure(options)
    first = next(row for row in rows if row["devices"] == 1)
    here = {
        "network": f"{pathlib.Path(options.config).name} on one {first['device']}",
        "images": first["images_a_device"],
        "step_seconds": first["step_seconds"],
        "bytes": first["gradient_bytes"],
    }
    rows += [*model(here, "measured here"), *model(STATED, "stated"), *claims()]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, options.out / "scaling.png")


# ---- measured ----


def layouts(devices):
    """(processes, devices of each) for 1, 2, 4, ... devices and every even division of them."""
    counts = [2**power for power in range(devices.bit_length()) if 2**power <= devices]
    return [(p, n // p) for n in counts for p in counts if p <= n]


def devices_at_hand():
    """The accelerators, else the cores; asked for in a process that then lets go of them."""
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    backend, count = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    return backend, len(os.sched_getaffinity(0)) if backend == "cpu" else int(count)


def measure(options):
    """A row for each layout; its rounds take turns with those of the other layouts."""
    backend, count = devices_at_hand()
    results = {layout: [] for layout in layouts(count)}
    for _ in range(options.rounds):
        for layout in results:
            results[layout].append(run_layout(layout, options, backend))
    rows = []
    for (processes, each), rounds in results.items():
        steps = [second for row in rounds for second in row["seconds"]]
        seconds = min(steps)  # other work on the machine slows the other steps
        devices = processes * each
        if rounds[0]["devices"] != devices:
            sys.exit(
                f"{processes} processes of {each} devices saw {rounds[0]['devices']} in all. Check "
                "whether CUDA_VISIBLE_DEVICES or the job's binding leaves fewer devices."
            )
        rows.append(
            {
                "kind": "measured",
                "processes": processes,
                "devices": devices,
                "device": rounds[0]["device"],
                "images_a_device": options.images,
                "gradient_bytes": rounds[0]["bytes"],
                "step_seconds": seconds,
                "median_step_seconds": statistics.median(steps),
                "images_per_second": options.images * devices / seconds,
                "efficiency": rows[0]["step_seconds"] / seconds if rows else 1.0,
                "load": round(os.getloadavg()[0], 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def run_layout(layout, options, backend):
    """Starts the processes of a layout and returns the result of the first one."""
    processes, each = layout
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))
    workers = []
    for index in range(processes):
        own = range(index * each, (index + 1) * each)
        environment = dict(os.environ)
        if backend == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(each)}
            pinned = {cores[i] for i in own}
        else:
            given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            visible = given if given != [""] else [str(number) for number in range(own.stop)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[own.start : own.stop])
            pinned = set(cores)
        command = [sys.executable, __file__, "--config", options.config]
        command += ["--images", str(options.images), "--steps", str(options.steps)]
        command += ["--worker", coordinator, str(processes), str(index)]
        workers.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda pinned=pinned: os.sched_setaffinity(0, pinned),
            )
        )
    try:
        outputs = [worker.communicate(timeout=1800)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        sys.exit(f"{processes} processes of {each} devices failed, see above")
    return json.loads(outputs[0].splitlines()[-1])


def work(options):
    """One process of a layout: the training step on synthetic images, timed step by step."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from ssd_jax import experiment
    from ssd_jax.config import load_config
    from ssd_jax.data.decode import empty_rows
    from ssd_jax.models.initialise import init_variables
    from ssd_jax.network import build_network
    from ssd_jax.sharding import make_mesh, put_batch
    from ssd_jax.train.compiled import compile_step

    coordinator, processes, process = options.worker
    if int(processes) > 1:
        # Without it, a process in a Slurm step would take one GPU of those that it sees.
        jax.distributed.initialize(
            coordinator,
            int(processes),
            int(process),
            cluster_detection_method="deactivate",
        )
        # Gloo waits for the others for 30 s; later, one may still compile when another is done.
        multihost_utils.sync_global_devices("start")
    config = load_config(options.config)
    mesh = make_mesh()
    config.batch_size = options.images * mesh.size
    # Groups that fit a device, as they do at full size.
    if config.model.batch_norm_group:
        config.model.batch_norm_group = min(config.model.batch_norm_group, options.images)
    config.loss.group = min(config.loss.group, options.images)
    network = build_network(config, 20)
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    variables = init_variables(network.model, config.model.image_size, seed=0)
    state = experiment.build_state(config, variables, optimizer, mesh)

    local = config.batch_size // int(processes)
    rows, rng = (
        empty_rows(local, canvas=config.data.canvas, max_objects=2),
        np.random.default_rng(0),
    )
    rows.canvas[:] = rng.integers(0, 256, rows.canvas.shape)
    rows.extent[:] = rows.size[:] = config.data.canvas
    rows.boxes[:] = [[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]
    rows.labels[:], rows.valid[:] = [0, 1], True
    rows.sample_id[:] = int(process) * local + np.arange(local)
    batch = put_batch(rows, mesh)

    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    compiled = compile_step(step, state, batch, mesh)
    seconds = []
    for number in range(2 + options.steps):
        since = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        if number >= 2:  # the first ones are slower
            seconds.append(time.perf_counter() - since)
    result = {
        "devices": mesh.size,
        "seconds": seconds,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(variables["params"])),
        "device": "CPU core" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


# ---- modelled ----


def all_reduce_seconds(size, gpus, network):
    """Rings, first among the GPUs of a machine, then among the machines."""
    machines, inside = max(1, gpus // GPUS_A_MACHINE), min(gpus, GPUS_A_MACHINE)
    return 2 * size * ((inside - 1) / inside / NVLINK + (machines - 1) / machines / network)


def efficiency(step_seconds, size, gpus, network):
    """(gradients sent after the step, sent during the backward pass) of the ideal speed."""
    sending = all_reduce_seconds(size, gpus, network)
    exposed = max(0.0, sending - BACKWARD * step_seconds)
    return step_seconds / (step_seconds + sending), step_seconds / (step_seconds + exposed)


def model(basis, origin):
    """A row for each number of GPUs and network; `origin` is the source of the step's time."""
    rows = []
    for name, network in NETWORKS.items():
        for gpus in (1, 2, 4, 8, 16, 32):
            after, during = efficiency(basis["step_seconds"], basis["bytes"], gpus, network)
            rows.append(
                {
                    "kind": "modelled",
                    "step_time": origin,
                    "network_links": name,
                    "devices": gpus,
                    "efficiency_not_overlapped": after,
                    "efficiency_overlapped": during,
                    "images_per_second": during * gpus * basis["images"] / basis["step_seconds"],
                    **basis,
                }
            )
    return rows


def claims():
    """The rows of what Amazon claimed for the original."""
    return [
        {
            "kind": "claimed",
            "machines": machines,
            "devices": machines * GPUS_A_MACHINE,
            "speed_up": speed_up,
            "efficiency": speed_up / machines,
        }
        for machines, speed_up in CLAIMS.items()
    ]


# ---- drawn ----


def draw(rows, path):
    """Measured: filled dots. Modelled: lines without. Claimed: stars."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    measured = [row for row in rows if row["kind"] == "measured"]
    for processes in sorted({row["processes"] for row in measured}):
        own = [row for row in measured if row["processes"] == processes]
        left.plot(
            [row["devices"] for row in own],
            [row["efficiency"] for row in own],
            "o",
            label=f"{processes} process{'es' if processes > 1 else ''}",
        )
    left.set_title(
        f"Measured: a device is a {measured[0]['device']} (load {measured[-1]['load']})",
        fontsize="medium",
    )
    stated = [row for row in rows if row["kind"] == "modelled" and row["step_time"] == "stated"]
    for colour, name in enumerate(NETWORKS):
        own = [row for row in stated if row["network_links"] == name]
        gpus = [row["devices"] for row in own]
        for word, style in (("overlapped", "-"), ("not_overlapped", "--")):
            right.plot(
                gpus,
                [row[f"efficiency_{word}"] for row in own],
                style,
                color=f"C{colour}",
                label=f"model, {name}, {word.replace('_', ' ')}",
            )
    claimed = [row for row in rows if row["kind"] == "claimed"]
    right.plot(
        [row["devices"] for row in claimed],
        [row["efficiency"] for row in claimed],
        "k*",
        markersize=11,
        label="claimed for the original, 1, 2, 4 x p2.8xlarge",
    )
    right.plot((1, 16), (1, 1), color="0.6", lw=6, alpha=0.4, label='claimed "near-linear" to 16')
    basis = stated[0]
    right.set_title(
        f"Modelled: {basis['network']}, {basis['images']} images a GPU in a stated "
        f"{1000 * basis['step_seconds']:.0f} ms",
        fontsize="medium",
    )
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(0, 1.1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower left")
    left.set_xlabel("devices")
    right.set_xlabel(f"GPUs, {GPUS_A_MACHINE} a machine")
    left.set_ylabel("speed, as a part of devices x the speed of one")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
