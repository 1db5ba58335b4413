"""Load on one HTTP call, from a process of its own: so many clients, each sending its next request when the last is answered.

    python studies/http_load.py http://127.0.0.1:3000/v1/classify IMAGES_FOLDER [--images 64] [--clients 3] [--seconds 10]

Prints one line of JSON. Requests are made before the clock starts and answers are read but not parsed, so that little of the
machine goes to the sender.
"""

import argparse
import json
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

BOUNDARY = "cells-of-one-specimen"


def post_request(address: str, files: list[bytes]) -> bytes:
    """The bytes of one multipart POST of images to an http address."""
    parts = urlsplit(address)
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="cell.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    body = b"".join(head.encode() + data + b"\r\n" for data in files) + f"--{BOUNDARY}--\r\n".encode()
    headers = f"Host: {parts.netloc}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}"
    return f"POST {parts.path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body


class Client:
    """One connection that is kept open."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._socket = socket.create_connection((str(parts.hostname), int(parts.port or 80)), 120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> None:
        """Send a request and read its answer; raises RuntimeError unless that is a 200."""
        self._socket.sendall(request)
        answer = bytearray()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._receive()
        head = bytes(answer[:end]).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"answered with {answer[:300]!r}")
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(answer) < end + 4 + length:
            answer += self._receive()

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


def load(address: str, requests: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests per second and latencies in ms of so many clients; what was under way when the time ended counts."""
    ready, latencies, rates = threading.Barrier(clients), [[] for _ in range(clients)], [0.0] * clients  # type: ignore[var-annotated]

    def work(number: int) -> None:
        client = Client(address)
        for request in requests[:2]:
            client.ask(request)
        ready.wait(120)
        begin = last = time.perf_counter()
        at = number
        while last - begin < seconds:
            client.ask(requests[at % len(requests)])
            now = time.perf_counter()
            latencies[number].append(1000 * (now - last))
            last, at = now, at + clients
        rates[number] = len(latencies[number]) / (last - begin)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(rates):
        raise SystemExit("a client did not get its answers")
    times = np.concatenate(latencies)
    return {
        "requests": len(times),
        "requests_per_second": sum(rates),
        "median_ms": float(np.median(times)),
        "p99_ms": float(np.quantile(times, 0.99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="in each request")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in sorted(arguments.folder.glob("*.jpg"))]
    groups = [files[start : start + arguments.images] for start in range(0, len(files) - arguments.images + 1, arguments.images)]
    if not groups:
        raise SystemExit(f"{arguments.folder} holds {len(files)} .jpg files: --images {arguments.images} needs as many")
    requests = [post_request(arguments.address, group) for group in groups]
    result = load(arguments.address, requests, arguments.clients, arguments.seconds)
    print(json.dumps({**result, "images_per_second": result["requests_per_second"] * arguments.images}))


if __name__ == "__main__":
    main()
