"""One thread a process: the suite runs in two processes on two cores, and spinning OpenMP threads would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
