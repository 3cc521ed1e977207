"""Tests run on the CPU, with one thread: `-m gpu` alone lets them see a CUDA device.

Where CUDA were seen, ``device=auto`` would choose it, and a test that forks could not after it had
started. One thread per process: the models here are too small for two, and the machines often are.
"""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("DCASGD_DATA", None)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("-m") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
