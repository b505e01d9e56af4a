"""Checks whether anything has become slower: ratios to a bare loop, compared with a baseline.

    python experiments/speed/check.py [--write] [--rounds 9] [--config FILE]

Ends with exit code 1 if a ratio is worse by more than 15 % twice in a row. --write makes the
measured ratios the baseline, baseline.json. There is one for each config, kind of device and, for
CPUs, number of cores, because their ratios differ. On CPUs the default config is quickstart. On a
GPU a small network would only measure how quickly kernels are launched, so the default there is
SSD512 with VGG16 in bfloat16, with batches of 64.
"""

import argparse
import json
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
TOLERANCE = 0.15
PICTURES = 32


def main():
    """Compares with the baseline, or writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="default: by the device, see above")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--baseline", type=pathlib.Path, default=HERE / "baseline.json")
    parser.add_argument("--write", action="store_true", help="make this the baseline")
    options = parser.parse_args()
    from ssd_jax.caches import keep_compiled_programs

    keep_compiled_programs()
    contests, subject = contests_of(options.config)
    measured = ratios(contests, options.rounds)
    baselines = json.loads(options.baseline.read_text()) if options.baseline.exists() else {}
    if options.write:
        load = round(os.getloadavg()[0], 1)
        baselines[subject] = {"ratios": measured, "rounds": options.rounds, "load": load}
        options.baseline.write_text(json.dumps(baselines, indent=2, sort_keys=True) + "\n")
        print(table(measured, measured))
        return
    if subject not in baselines:
        known = "; ".join(baselines) or "nothing"
        sys.exit(
            f"{options.baseline} has {known}, but not {subject}. Make it with --write on an idle "
            "machine."
        )
    baseline = baselines[subject]["ratios"]
    slower = worse(measured, baseline)
    if slower:
        print(f"slower in {', '.join(slower)}; measuring again")
        again = ratios({name: contests[name] for name in slower}, 2 * options.rounds)
        measured |= again
        slower = worse(again, baseline)
    print(table(measured, baseline))
    if slower:
        sys.exit(f"slower by more than {TOLERANCE:.0%}: {', '.join(slower)}")


def contests_of(path):
    """Two functions by name, ours and the bare one that it is compared with; and the subject."""
    import jax

    from ssd_jax.benchmark.parts import augment_program, loss_program
    from ssd_jax.benchmark.workload import (
        bare_program,
        evaluate_program,
        forward_program,
        make_workload,
        train_program,
    )
    from ssd_jax.config import load_config
    from ssd_jax.sharding import make_mesh

    jax.config.update("jax_num_cpu_devices", 1)
    mesh = make_mesh(jax.devices()[:1])
    device = mesh.devices.flat[0]
    default = "quickstart.py" if device.platform == "cpu" else "voc0712_vgg16_512.py"
    file = pathlib.Path(path or HERE.parents[1] / "configs" / default)
    config = load_config(str(file))
    if not path and device.platform != "cpu":
        config.batch_size, config.model.dtype = 64, "bfloat16"
    work = make_workload(config, mesh)
    bare, forward = bare_program(work).call, forward_program(work).call
    contests = {
        "training step": (train_program(work).call, bare),
        "augmentation": (augment_program(work).call, bare),
        "matching, mining and losses": (loss_program(work).call, bare),
        "evaluation batch": (evaluate_program(work).call, forward),
        "decoded pictures": decoding(work),
    }
    return contests, subject_of(file, config, device.device_kind)


def subject_of(file, config, device_kind):
    """The key of a baseline: config with its variant, dtype, batch and device."""
    from ssd_jax.hardware import cores

    name = file.name.replace(".py", "", 1)
    with_cores = f", {cores()} cores" if device_kind == "cpu" else ""
    return f"{name}, {config.model.dtype}, batch {config.batch_size}, {device_kind}{with_cores}"


def decoding(work):
    """The rows of a batch, and OpenCV's decoder alone."""
    import cv2
    import numpy as np

    from ssd_jax.data.pipeline import decode_rows, max_objects

    source, indices = work.source, np.arange(PICTURES)
    form = {"canvas": work.config.data.canvas, "max_objects": max_objects(source)}
    files = [np.frombuffer(source[i].image, np.uint8) for i in indices]
    return (
        lambda: decode_rows(source, indices, **form),
        lambda: [cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files],
    )


def ratios(contests, rounds):
    """Ours over bare, of the fastest calls: what else runs on the machine only slows down."""
    from ssd_jax.benchmark.clock import take_turns

    calls = {}
    for name, (ours, bare) in contests.items():
        calls |= {(name, "ours"): ours, (name, "bare"): bare}
    seconds = take_turns(calls, rounds=rounds)
    return {n: min(seconds[n, "ours"]) / min(seconds[n, "bare"]) for n in contests}


def worse(measured, baseline):
    """The names whose ratio has grown by more than TOLERANCE."""
    return [n for n, ratio in measured.items() if ratio > (1 + TOLERANCE) * baseline[n]]


def table(measured, baseline):
    """The ratios as text, one per line."""
    return "\n".join(
        f"{name:28} {ratio:7.3f} times the bare loop; baseline {baseline[name]:7.3f}, "
        f"{ratio / baseline[name] - 1:+.0%}"
        for name, ratio in measured.items()
    )


if __name__ == "__main__":
    main()
