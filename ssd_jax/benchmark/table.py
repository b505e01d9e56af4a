"""The results of a benchmark as text."""

from collections.abc import Mapping
from typing import Any

_PROGRAMS = {
    "train": "training step",
    "bare_train": "  network alone",
    "evaluate": "evaluation batch",
    "forward": "  network alone",
    "predict": "one image",
}


def table(result: Mapping[str, Any]) -> str:
    """The table of `measure.measure`, and of `start.measure_starts` if that was run."""
    machine = result["machine"]
    lines = [
        f"{result['config']}: batch {result['batch_size']} on {machine['devices']} x "
        f"{machine['device']}, JAX {machine['jax']}, load {machine['load']}",
        f"one device: {machine['matmul_operations_per_second'] / 1e12:.3g} TFLOP/s in a matrix "
        f"product, {machine['bytes_per_second'] / 1e9:.3g} GB/s of memory",
        "",
        f"{'':18}{'ms':>9}{'from':>9}{'to':>9}{'images/s':>10}{'TFLOP/s':>9}{'of peak':>9}"
        f"{'GB/s':>8}{'of memory':>11}{'of roofline':>13}{'GiB':>7}",
    ]
    for name, text in _PROGRAMS.items():
        row = result["programs"][name]
        lines.append(
            f"{text:18}{row['seconds'] * 1e3:9.1f}{row['fastest'] * 1e3:9.1f}"
            f"{row['slowest'] * 1e3:9.1f}{row['images_per_second']:10.1f}"
            f"{row['operations_per_second'] / 1e12:9.3f}{row['of_matmul_peak']:9.0%}"
            f"{row['bytes_per_second'] / 1e9:8.1f}{row['of_bandwidth']:11.0%}"
            f"{row['of_roofline']:13.0%}{row['memory_bytes'] / 2**30:7.2f}"
        )
    against = result["against_bare"]
    lines += [
        "",
        f"times the network alone: training {_ratio(against['train'])}, evaluation "
        f"{_ratio(against['evaluate'])}",
        "parts of a training step, each measured alone: "
        + ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items()),
        f"input: {result['input']['seconds'] * 1e3:.1f} ms per batch; a training loop waits for "
        f"it {result['input']['data_wait']:.1%} of its time",
        "largest shares of the roofline of a step: "
        + ", ".join(f"{row['layer']} {row['share']:.1%}" for row in result["layers"]),
        "compiled in: "
        + ", ".join(f"{n} {row['compile_seconds']:.2f} s" for n, row in result["programs"].items()),
        "memory: " + ", ".join(f"{n} {gib:.2f}" for n, gib in result["memory"].items()),
    ]
    for name, start in result.get("start", {}).items():
        lines.append(
            f"{name} start: imports {start['import']:.1f} s, first prediction after "
            f"{start['first_answer']:.1f} s ({start['compile_predict']:.2f} s of it compiling), "
            f"then the first step after {start['first_step']:.1f} s "
            f"({start['compile_train']:.2f} s of it compiling)"
        )
    return "\n".join(lines)


def comparison_table(result: Mapping[str, Any]) -> str:
    """The table of `compare.run_comparison`."""
    rows = [
        f"{seconds * 1e3:10.1f} ms  {name}"
        for name, seconds in zip(result["names"], result["median_seconds"], strict=True)
    ]
    return "\n".join([*rows, f"the second takes {_ratio(result)} times as long"])


def _ratio(compared):
    return f"{compared['ratio']:.3f} ({compared['lowest']:.3f} to {compared['highest']:.3f})"
