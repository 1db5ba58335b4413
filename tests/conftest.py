"""One thread a process: the suite runs in two processes on two cores, and spinning OpenMP threads would wait for each other."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that imports OpenVINO itself reports that to its maker as little as the product does (`silent_openvino`).
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
