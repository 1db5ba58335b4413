"""Send the cell images of one specimen to the service and print its differential.

    pip install httpx
    python client.py http://127.0.0.1:3000 cells/ --specimen 26-04711 --wbc 7.1 --fhir bundle.json

The key is taken from WBC_API_KEY. Exits with 1 and one line where the service refuses.
"""

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

JSON, FHIR = "application/json", "application/fhir+json"
IMAGES, BYTES = 256, 64 * 2**20  # of one request: the service takes 256 images, and 128 MiB unless it is set up otherwise


def post(url: str, folder: Path, fields: dict[str, str], accept: str = JSON) -> dict:
    """Post every image of a folder, with the text fields, to one differential; SystemExit with the service's reason.

    More than one request holds are sent in batches. Each says how many images come in all, so that a report that lacks some
    cannot be signed. `results` of the answer are those of all batches.
    """
    batches = list(split([path for path in sorted(folder.iterdir()) if path.is_file()]))
    fields = {**fields, "expected_images": str(sum(map(len, batches)))}
    results = []
    for number, batch in enumerate(batches, 1):
        answer = send(url, batch, fields, accept if number == len(batches) else JSON)
        results += answer.get("results", [])
        if number < len(batches):
            if not answer.get("report_id"):
                sys.exit(f"This service keeps no reports: it counts {len(batch)} of these images at a time, and no more.")
            fields["report_id"] = answer["report_id"]
    return {**answer, "results": results} if accept == JSON else answer


def split(paths: list[Path]) -> Iterator[list[Path]]:
    """The files in batches that one request holds; one batch at least."""
    batch, size = [], 0
    for path in paths:
        more = path.stat().st_size
        if batch and (len(batch) == IMAGES or size + more > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += more
    yield batch


def send(url: str, paths: list[Path], fields: dict[str, str], accept: str) -> dict:
    """Send one batch, again where that may help; SystemExit with the service's reason.

    The key lets the service know a repetition: after a broken connection nobody can say whether the first call was carried out.
    """
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    headers = {"Accept": accept, "X-API-Key": os.environ.get("WBC_API_KEY", ""), "Idempotency-Key": str(uuid.uuid4())}
    for wait in (1, 2, 4, 8, None):
        try:
            answer = httpx.post(f"{url}/v1/differential", files=files, data=fields, headers=headers, timeout=180)
        except httpx.TransportError as error:
            problem = {"status": "", "title": "No answer", "detail": f"The service was not reached, or not to the end: {error}."}
            again = True
        else:
            if answer.status_code == 200:
                return answer.json()
            problem = answer.json()
            again = answer.status_code in (429, 500, 502, 503, 504) or problem["type"].endswith(":idempotency-key-in-use")
        if not again or wait is None:
            break
        time.sleep(wait)
    sys.exit(f"{problem['status']} {problem['title']}: {problem['detail']}".strip())


def show(answer: dict) -> None:
    """Print the differential as a table, and the images that a person must look at."""
    differential = answer["differential"]
    print(f"{differential['kind']}, model {answer['model']['version']}: {differential['note']}")
    for name, share in differential["classes"].items():
        limits, absolute = share["corrected"] or share["interval"], share["absolute"]
        count = f"{absolute['value']:8.2f} 10*3/uL {absolute['flag'] or ''}" if absolute else ""
        between = f"{limits['low']:5.1f} to {limits['high']:5.1f}"
        print(f"{name:12}{share['count']:5}{share['percent']:7.1f} % ({between})  {share['flag'] or '':9}{count}".rstrip())
    for number, result in enumerate(answer["results"], 1):
        if result["status"] == "rejected":
            print(f"image {number} was not used: {result['problem']['detail']}")
        elif result["review"]["required"]:
            print(f"image {number} is to be looked at ({', '.join(result['review']['reasons'])}): {result['label']}?")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--specimen")
    parser.add_argument("--wbc", help="leukocytes in 10*3/uL")
    parser.add_argument("--fhir", type=Path, help="write the FHIR Bundle to this file instead")
    options = parser.parse_args()
    given = {"specimen_id": options.specimen, "wbc_count": options.wbc}
    fields = {name: value for name, value in given.items() if value is not None}
    if options.fhir:
        options.fhir.write_text(json.dumps(post(options.url, options.folder, fields, FHIR), indent=2))
    else:
        show(post(options.url, options.folder, fields))
