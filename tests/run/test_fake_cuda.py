"""What a run does on CUDA, on fake tensors: the tests of ``fake_cuda.py``, in one process.

It is a process of its own: once a tensor on a fake "cuda" was made, autograd has threads for that
device, and no later test of the process could fork.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_runs_on_cuda() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    file = Path(__file__).with_name("fake_cuda.py")
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
