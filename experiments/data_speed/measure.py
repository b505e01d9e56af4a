"""How fast records are read and batches made, compared with bare `pread`, OpenCV and MXNet.

    taskset -c 0 python experiments/data_speed/measure.py /tmp/records [--mxnet PYTHON]

Each task runs in a process of its own, one after the other in every round, so that other work on
the machine slows all of them alike. Figures are per second of CPU time of all threads together, the
median over the rounds. PYTHON is an interpreter that has MXNet 1.9.1 (Python 3.8).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

IMAGES, RECORDS, IMAGE_BYTES, SIZE = 64, 2000, 82_000, (375, 500)
BATCH_SIZE, CANVAS = 16, 512
RECORD_TASKS = ("pread", "images", "examples")
IMAGE_TASKS = ("decode", "batches")


def make_jpegs():
    """Images of SIZE and about IMAGE_BYTES: noise at all scales, as in photographs."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for _ in range(IMAGES):
        picture = np.zeros((*SIZE, 3), np.float32)
        for scale in (1, 2, 4, 8, 16, 32, 64):
            small = rng.standard_normal((SIZE[0] // scale + 1, SIZE[1] // scale + 1, 3))
            picture += scale**0.3 * cv2.resize(small.astype(np.float32), SIZE[::-1])
        picture = np.clip(128 + 45 * picture / picture.std(), 0, 255).astype(np.uint8)
        files = (
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            for quality in range(97, 5, -1)
        )
        yield next(file for file in files if len(file) <= IMAGE_BYTES)


def make_records(path):
    """A `.rec` file of RECORDS records with two objects each."""
    import numpy as np

    from ssd_jax.data.sources.base import Annotations, Problems, Source
    from ssd_jax.data.sources.recordio_writer import write_recordio

    images = list(make_jpegs())
    annotations = Annotations(
        names=[str(number) for number in range(RECORDS)],
        sizes=np.tile(np.array(SIZE, np.int32), (RECORDS, 1)),
        offsets=np.arange(RECORDS + 1) * 2,
        boxes=np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (2 * RECORDS, 1)),
        labels=np.arange(2 * RECORDS, dtype=np.int32) % 20,
        difficult=np.zeros(2 * RECORDS, bool),
    )
    source = Source(
        annotations,
        [str(number) for number in range(20)],
        read_image=lambda index: images[index % IMAGES],
        locate=str,
        problems=Problems(),
    )
    write_recordio(path, source)


def task_function(task, path):
    """(function to time, number of records or images it handles)."""
    import numpy as np

    if task == "mxnet":
        from mxnet import recordio

        order = np.random.RandomState(0).permutation(RECORDS)
        records = recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "r")
        return lambda: [recordio.unpack(records.read_idx(int(i))) for i in order], RECORDS

    import cv2

    from ssd_jax.data.pipeline import max_objects, train_batches
    from ssd_jax.data.sources.recordio import open_recordio

    cv2.setNumThreads(1)
    source = open_recordio(path)
    order = np.random.default_rng(0).permutation(RECORDS).tolist()
    jpegs = [np.frombuffer(source.read_image(i), np.uint8) for i in range(IMAGES)]

    def pread():
        for i in order:
            os.pread(descriptor, record_bytes, i * record_bytes)

    def images():
        for i in order:
            source.read_image(i)

    def examples():
        for i in order:
            source[i]

    def decode():
        for jpeg in jpegs:
            cv2.imdecode(jpeg, cv2.IMREAD_COLOR)

    def batches():
        for _ in range(IMAGES // BATCH_SIZE):
            next(iterator)

    if task == "pread":
        descriptor = os.open(path, os.O_RDONLY)
        record_bytes = path.stat().st_size // RECORDS
    if task == "batches":
        form = {"canvas": CANVAS, "max_objects": max_objects(source)}
        iterator = train_batches(source, batch_size=BATCH_SIZE, seed=0, num_threads=1, **form)
    functions = {f.__name__: f for f in (pread, images, examples, decode, batches)}
    return functions[task], IMAGES if task in IMAGE_TASKS else RECORDS


def run_task(task, path, repeats=6):
    """Print the rate of a task as JSON."""
    function, count = task_function(task, path)
    function()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        seconds.append(time.process_time() - begin)
    print(json.dumps(count / statistics.median(seconds)))


def main():
    """Make the records if they are not there, run all tasks, write results.jsonl, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--mxnet", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: expected at least 1")
    path = arguments.folder / "records.rec"
    if arguments.task:
        run_task(arguments.task, path)
        return
    if not path.exists():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        make_records(path)
    pythons = dict.fromkeys((*RECORD_TASKS, *IMAGE_TASKS), sys.executable)
    if arguments.mxnet:
        pythons["mxnet"] = arguments.mxnet
    rates = {task: [] for task in pythons}
    for _ in range(arguments.rounds):
        for task, python in pythons.items():
            command = [python, __file__, str(arguments.folder), "--task", task]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rates[task].append(json.loads(output.splitlines()[-1]))
    results = pathlib.Path(__file__).with_name("results.jsonl")
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    rows = {row["task"]: row for row in map(json.loads, lines)}
    for task, values in rates.items():
        rows[task] = {"task": task, "per_cpu_second": [round(value) for value in values]}
    results.write_text("".join(json.dumps(row) + "\n" for row in rows.values()), encoding="utf-8")
    for task, values in rates.items():
        base = "decode" if task in IMAGE_TASKS else "pread"
        ratio = statistics.median(a / b for a, b in zip(values, rates[base], strict=True))
        print(f"{task:9} {statistics.median(values):9,.0f}/s  {ratio:5.2f} of {base}")


if __name__ == "__main__":
    main()
