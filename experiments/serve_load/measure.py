"""What the server costs in addition to its engine, and how it behaves under load.

    python experiments/serve_load/measure.py run FOLDER [--config.NAME=VALUE ...]
    python experiments/serve_load/measure.py FOLDER [--seconds 600] [--rounds 300] [--engine jax]

The first makes the folder of a run of random weights, by default SSD512 on ResNet-50. The second
serves FOLDER, of a run or exported, and prints figures, which it also appends to results.jsonl:

    start       seconds from the command to /ping, with an empty and with a filled compilation cache
    latency     of one client, in turn with the engine called in this process on the same images
    throughput  of 8 clients, in turn with the engine at each batch size
    load        --seconds of good, bad and slow requests at once; then SIGTERM
"""

import argparse
import atexit
import contextlib
import http.client
import json
import os
import pathlib
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
from load import CLIENTS, JPEG, ask, in_threads, measure_load, percentile

BATCHES = (1, 2, 4, 8)
RESULTS = pathlib.Path(__file__).with_name("results.jsonl")


def make_run(folder, settings):
    """A run at step 0: random weights, with scores that are all close together."""
    import optax

    from ssd_jax import config as configs
    from ssd_jax.detector import open_checkpoints
    from ssd_jax.models.initialise import init_variables
    from ssd_jax.network import build_network
    from ssd_jax.recipes import recipe_config
    from ssd_jax.sharding import make_mesh
    from ssd_jax.train.state import create_state

    config = recipe_config("sagemaker", "resnet50_v2")
    config.model.image_size = config.data.canvas = 512
    configs.override(config, configs.split_assignments(settings))
    variables = init_variables(build_network(config, 20).model, config.model.image_size, seed=0)
    variables = as_if_trained(config, variables)
    state = create_state(variables, optax.sgd(0.0), make_mesh())
    with open_checkpoints(config, folder) as checkpoints:
        checkpoints.save(state, None, classes=tuple(str(number) for number in range(20)))
    configs.save_config(config, folder / "config.json")


def as_if_trained(config, variables):
    """Makes activations and outputs about as large as those of a trained detector.

    The statistics of BatchNorm become those of a picture; with the first ones activations grow with
    every layer. Else what engines round differently would move boxes further than an export allows.
    """
    import jax

    from ssd_jax.network import build_network
    from ssd_jax.ops.images import normalise
    from ssd_jax.sharding import BATCH_AXIS

    alone = config.copy_and_resolve_references()
    alone.model.update({"batch_norm_momentum": 0.0, "batch_norm_group": 0})
    picture = cv2.imdecode(np.frombuffer(next(make_pictures()), np.uint8), cv2.IMREAD_COLOR_RGB)
    side = config.model.image_size
    images = cv2.resize(picture, (side, side))[None].astype(np.float32)
    images = normalise(images, config.preprocess.mean, config.preprocess.std)
    model = build_network(alone, 20).model

    def statistics(images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    of_one_device = jax.vmap(statistics, axis_name=BATCH_AXIS)(images[None])
    params = dict(variables["params"])
    params["heads"] = jax.tree.map(lambda leaf: 0.1 * leaf, params["heads"])
    return {"params": params, **jax.tree.map(lambda leaf: leaf[0], of_one_device)}


def make_pictures(count=16):
    """JPEGs of 500 x 375 pixels of noise at all scales, as in photographs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        picture = np.zeros((375, 500, 3), np.float32)
        for scale in (2, 4, 8, 16, 32, 64):
            small = rng.standard_normal((375 // scale + 1, 500 // scale + 1, 3))
            picture += scale**0.3 * cv2.resize(small.astype(np.float32), (500, 375))
        picture = np.clip(128 + 45 * picture / picture.std(), 0, 255).astype(np.uint8)
        yield cv2.imencode(".jpg", picture)[1].tobytes()


class Server:
    """`ssd-jax serve` in a process of its own."""

    def __init__(self, arguments, cache, log):
        start = time.perf_counter()
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ssd_jax", "serve", "--port", "0", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SSD_JAX_CACHE": str(cache)},
            )
        atexit.register(self.process.kill)  # if a measurement fails
        self.port = self._wait(lambda: self._told("listening"))["port"]
        self._wait(lambda: self.get("/ping")[0] == 200)
        self.start_seconds = time.perf_counter() - start
        self.start_cpu_seconds = sum(self._times()) / os.sysconf("SC_CLK_TCK")

    def _told(self, event):
        lines = (line for line in self._log.read_text().splitlines() if line.startswith("{"))
        return next((told for told in map(json.loads, lines) if told["event"] == event), None)

    def _wait(self, condition):
        while not (value := condition()):
            if self.process.poll() is not None:
                sys.exit(self._log.read_text())
            time.sleep(0.02)
        return value

    def _times(self):
        fields = (
            pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        )
        return [int(fields[place]) for place in (11, 12)]  # user and system, proc(5)

    def connect(self):
        """A new client."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path):
        """(status, content)."""
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, "GET", path)

    def resident(self):
        """Bytes."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def stop(self):
        """SIGTERM; gives the exit code and the seconds until then."""
        start = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60), time.perf_counter() - start


def measure_start(arguments, folder):
    """Seconds from the command to a healthy server, cold and warm; and the warm server."""
    seconds = {}
    for name in ("cold", "warm"):
        server = Server(arguments, folder / "cache", folder / f"{name}.log")
        seconds[name] = server.start_seconds
        seconds[f"{name}_of_processor"] = server.start_cpu_seconds
        if name == "cold":
            server.stop()
    return seconds, server


def measure_latency(server, engine, pictures, rounds):
    """Seconds of one image at a time, by the server and by the engine in this process."""
    from ssd_jax.data.decode import decode_image

    def in_process(picture):
        canvas, extent, _ = decode_image(picture, "it", engine.canvas)
        engine.predict(canvas[None], np.array([extent], np.int32))

    in_process(pictures[0])
    seconds = {"server": [], "engine": []}
    with contextlib.closing(server.connect()) as connection:
        ways = {
            "server": lambda picture: ask(connection, "POST", "/invocations", picture, JPEG),
            "engine": in_process,
        }
        for round_number in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way(pictures[round_number % len(pictures)])
                seconds[name].append(time.perf_counter() - start)
    pairs = [a / b for a, b in zip(seconds["server"], seconds["engine"], strict=True)]
    figures = {
        name: {"p50": percentile(each, 50), "p99": percentile(each, 99)}
        for name, each in seconds.items()
    }
    for each in figures.values():
        each["p99_by_p50"] = each["p99"] / each["p50"]
    return {
        **figures,
        "p50_ratio": figures["server"]["p50"] / figures["engine"]["p50"],
        "ratio_of_pairs": statistics.median(pairs),
    }


def measure_throughput(server, engine, pictures, turns=5, seconds=12.0):
    """Images per second of CLIENTS at once, and of the engine at each batch size, in turns."""
    from ssd_jax.data.decode import decode_image

    canvas, extent, _ = decode_image(pictures[0], "it", engine.canvas)
    batches = {
        size: (np.stack([canvas] * size), np.array([extent] * size, np.int32)) for size in BATCHES
    }
    for batch in batches.values():
        engine.predict(*batch)
    rates = {name: [] for name in ("clients", *BATCHES)}
    for _ in range(turns):
        rates["clients"].append(clients_rate(server, pictures, seconds))
        for size, batch in batches.items():
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds / 2:
                engine.predict(*batch)
                done += size
            rates[size].append(done / (time.perf_counter() - start))
    median = {str(name): statistics.median(each) for name, each in rates.items()}
    best = max(BATCHES, key=lambda size: median[str(size)])
    ratios = [a / b for a, b in zip(rates["clients"], rates[best], strict=True)]
    return {"pictures_per_second": median, "best_batch": best, "ratio": statistics.median(ratios)}


def clients_rate(server, pictures, seconds):
    """Images per second, from the first batch of answers to the last one."""
    done, end = [], time.perf_counter() + seconds

    def client():
        with contextlib.closing(server.connect()) as connection:
            while time.perf_counter() < end:
                ask(connection, "POST", "/invocations", random.choice(pictures), JPEG)
                done.append(time.perf_counter())

    in_threads([client] * CLIENTS)
    # Answers of a batch come together, and those of the first batch were begun before the clock.
    first, last = min(done), max(done)
    return sum(each > first + 0.1 for each in done) / (last - first)


def main():
    """Makes a run, or measures."""
    if sys.argv[1:2] == ["run"]:
        return make_run(pathlib.Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--engine", default="auto", help="engine of an exported model")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()

    from ssd_jax.detector import Detector
    from ssd_jax.export.exported import open_exported

    is_run = (options.folder / "config.json").is_file()
    arguments = ["--workdir" if is_run else "--model", str(options.folder)]
    if not is_run:
        arguments += ["--engine", options.engine]
    pictures = list(make_pictures())
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        figures = {
            "folder": options.folder.name,
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
            "load_before": os.getloadavg()[0],
        }
        figures["start"], server = measure_start(arguments, folder)
        tell(figures)
        os.environ["SSD_JAX_CACHE"] = str(folder / "cache")
        if is_run:
            engine = Detector.load(options.folder)
        else:
            engine = open_exported(options.folder, engine=options.engine)
        figures["engine"] = engine.engine
        figures["latency"] = measure_latency(server, engine, pictures, options.rounds)
        tell(figures["latency"])
        figures["throughput"] = measure_throughput(server, engine, pictures)
        tell(figures["throughput"])
        figures["load"] = measure_load(server, pictures, options.seconds)
        tell(figures["load"])
        figures["load_after"] = os.getloadavg()[0]
    with RESULTS.open("a") as file:
        file.write(json.dumps(figures) + "\n")


def tell(figures):
    """Prints them."""
    print(json.dumps(figures, indent=2), flush=True)


if __name__ == "__main__":
    main()
