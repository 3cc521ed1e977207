"""Tests run on the CPU, with one thread: DCASGD_GPU_TESTS=cuda alone lets them see a CUDA device.

Where CUDA were seen, ``device=auto`` would choose it, and a test that forks could not after it had
started. One thread per process: the models here are too small for two, and the machines often are.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("DCASGD_DATA", None)
if os.environ.get("DCASGD_GPU_TESTS") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
