import errno
import fcntl

import pytest

from ssd_jax.errors import UserError
from ssd_jax.locks import lock, only_training


def test_one_holds_a_lock_until_it_is_closed(tmp_path):
    with (tmp_path / "a").open("w") as first, (tmp_path / "a").open("w") as second:
        assert lock(first)
        assert not lock(second)
        first.close()
        assert lock(second)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "a").open("w") as file:
        assert lock(file)
        assert lock(file, wait=True)


def test_a_folder_is_trained_in_once_at_a_time(tmp_path):
    def train():
        return only_training(tmp_path, "runs/mine")

    message = "runs/mine: another process is training"
    with train(), pytest.raises(UserError, match=message), train():
        pass
    with train():
        pass
