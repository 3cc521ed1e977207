"""One thread per process: the models here are too small for two, and the machines often are."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("DCASGD_DATA", None)
