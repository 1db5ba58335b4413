"""Whether the service answers what the offline evaluation says, image by image, over HTTP.

    python studies/served_equals_offline.py MODEL_DIR DATA.csv [--images 200] [--port 3900]

The study starts `wbc serve` on the model directory and posts test images in requests of 64. It compares labels and
probabilities with those of `wbc evaluate` (torch, float32). The exit code is 1 when a label differs or a probability is off by
more than 0.02. A directory with an int8 graph promises less (docs/decisions/024): there it is 1 when accuracy falls by more
than 0.2 points.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

from flows.pipeline.quantise import ACCURACY_POINTS
from wbc_model.core.classes import CLASSES
from wbc_model.core.model_card import INT8, read_card
from wbc_model.evaluation.evaluate import evaluate_data, frame_probabilities

WBC = Path(sys.executable).parent / "wbc"


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit("the service did not start")
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the service did not become ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--port", type=int, default=3900)
    arguments = parser.parse_args()
    _, frame = evaluate_data(arguments.model, arguments.data)
    frame = frame.sample(min(arguments.images, len(frame)), random_state=0)
    offline = frame_probabilities(frame)
    url = f"http://127.0.0.1:{arguments.port}"
    server = subprocess.Popen([WBC, "serve", "--model", str(arguments.model), "--port", str(arguments.port)])
    try:
        wait_until_ready(url, server)
        served = []
        for start in range(0, len(frame), 64):
            paths = frame["path"].iloc[start : start + 64]
            files = [("images", ("cell", (arguments.data.parent / path).read_bytes())) for path in paths]
            answer = httpx.post(f"{url}/v1/classify", files=files, timeout=120)
            answer.raise_for_status()
            served += answer.json()["results"]
    finally:
        server.terminate()
        server.wait(30)
    online = np.array([[result["probabilities"][name] for name in CLASSES] for result in served])
    labels = [result["label"] for result in served]
    offline_right, served_right = (frame["predicted"] == frame["label"]).mean(), (frame["label"] == labels).mean()
    result = {
        "images": len(frame),
        "int8": INT8[0] in read_card(arguments.model).sha256,
        "labels_that_differ": int((frame["predicted"] != labels).sum()),
        "largest_difference_of_a_probability": float(np.abs(online - offline).max()),
        "accuracy_falls_by_points": float(100 * (offline_right - served_right)),
        "offline_top_probability_under_0.9": float((offline.max(axis=1) < 0.9).mean()),
    }
    print(json.dumps(result, indent=2))
    if result["int8"]:
        sys.exit(result["accuracy_falls_by_points"] > ACCURACY_POINTS)
    sys.exit(result["labels_that_differ"] > 0 or result["largest_difference_of_a_probability"] > 0.02)


if __name__ == "__main__":
    main()
