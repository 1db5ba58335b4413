"""A receiver of HL7 messages over MLLP, run as a process of its own: `python mllp_listener.py PORT FILE [SECONDS]`.

Every message is appended to FILE and synced before it is acknowledged, SECONDS later. What the specimen number (SPM-2) says is
done: REJECT and ERROR are answered with AR and AE, ONCE with AE the first time, TWICE with AE but the first time, SILENT not at
all, WRONG with another message's number, CLOSE by hanging up.
"""

import json
import os
import socketserver
import sys
import time
from pathlib import Path

START, END = b"\x0b", b"\x1c\r"


def acknowledgement(code: str, control_id: str, words: str) -> bytes:
    lines = [
        f"MSH|^~\\&|LIS|HOSPITAL|WBC||20261123120000||ACK^R01^ACK|{os.getpid()}|P|2.5.1",
        f"MSA|{code}|{control_id}|{words}",
    ]
    return START + "\r".join(lines).encode() + b"\r" + END


class Handler(socketserver.BaseRequestHandler):
    """One connection; one message after the other."""

    def handle(self) -> None:
        received = b""
        while chunk := self.request.recv(4096):
            received += chunk
            while END in received:
                message, _, received = received.partition(END)
                self.answer(message.removeprefix(START).decode())

    def answer(self, message: str) -> None:
        segments = {line[:3]: line.split("|") for line in message.split("\r") if line}
        control_id, does = segments["MSH"][9], segments.get("SPM", ["", "", ""])[2].split("-")[0]
        with FILE.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message) + "\n")
            file.flush()
            os.fsync(file.fileno())
        time.sleep(DELAY)
        if does == "CLOSE":
            self.request.close()
        elif does != "SILENT":
            first = sum(f"SPM|1|{segments['SPM'][2]}|" in line for line in FILE.read_text().splitlines()) == 1
            code = {"REJECT": "AR", "ERROR": "AE", "ONCE": "AE" if first else "AA", "TWICE": "AA" if first else "AE"}.get(
                does, "AA"
            )
            words = "" if code == "AA" else "Unknown specimen"
            self.request.sendall(acknowledgement(code, "ANOTHER" if does == "WRONG" else control_id, words))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    FILE, DELAY = Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()
