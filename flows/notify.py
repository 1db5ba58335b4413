"""News that nobody waits for at a terminal: a line in a log, on stderr, and to whoever wants to be notified.

What went wrong in a scheduled run is told (`tell`), and that people are asked or a retraining goes on (`announce`).

`schedule.notify` in params.yaml says who that is; WBC_NOTIFY takes precedence and need not be committed. It is the address of a
webhook, which is sent `{"text": LINE, "workspace": NAME}`, as Slack, Mattermost and Teams take it. Or it is a notification block
of Prefect's, as TYPE/NAME.
"""

import asyncio
import contextlib
import os
import re
import sys
import threading
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flows.identity import workspace_name
from wbc_model.core.errors import WbcError
from wbc_model.params import NOTIFY, read_params

WBC_NOTIFY: Final = "WBC_NOTIFY"
LOG: Final = ".wbc/logs/schedule.log"  # what went wrong: `wbc status` shows it
NEWS: Final = ".wbc/logs/news.log"
RETRAINING_FAILED: Final = "the scheduled retraining failed"
WATCH_FAILED: Final = "the watch for labels failed"
_SECONDS: Final = 15


def tell(workspace: Path, line: str) -> None:
    """Say in one line what went wrong: in the workspace's log, on stderr and by notification. If one of these fails, the others
    are still said."""
    _say(workspace, line, LOG)


def announce(workspace: Path, line: str) -> None:
    """Say one line of news in the same three places; the log is that of news."""
    _say(workspace, line, NEWS)


def _say(workspace: Path, line: str, log: str) -> None:
    line = " ".join(line.split())
    _write(workspace, line, log)
    try:
        _notify(workspace, line)
    except WbcError as error:
        _write(workspace, f"nobody was notified: {error}", LOG)


def _write(workspace: Path, line: str, name: str) -> None:
    print(f"wbc: {line}", file=sys.stderr, flush=True)
    path = workspace / name
    with contextlib.suppress(OSError):  # a full disk, perhaps the very thing that is to be told
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {line}\n")


def _notify(workspace: Path, line: str) -> None:
    where = os.environ.get(WBC_NOTIFY) or read_params(workspace / "params.yaml").schedule.notify
    if not where:
        return
    if not NOTIFY.fullmatch(where):
        raise WbcError(
            f"what {WBC_NOTIFY} holds is neither a webhook's address nor a Prefect block TYPE/NAME"
        )  # it may be a secret
    if where.startswith(("http://", "https://")):
        _post(where, workspace, line)
    else:
        _block(where, workspace, line)


def _post(url: str, workspace: Path, line: str) -> None:
    """Post the line. A receiver that answers a byte at a time, or without an end, is waited for no longer than any other."""
    answered: list[int | Exception] = []
    body = {"text": line, "workspace": workspace_name(workspace)}
    thread = threading.Thread(target=_ask, args=(url, body, answered), name="webhook", daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if not answered:
        raise WbcError(f"the webhook does not answer: nothing came within {_SECONDS} s")
    if isinstance(answered[0], Exception):
        raise WbcError(f"the webhook does not answer: {str(answered[0]) or type(answered[0]).__name__}")
    if answered[0] >= 300:
        raise WbcError(f"the webhook answered {answered[0]}")


def _ask(url: str, body: dict[str, str], answered: list[int | Exception]) -> None:
    """Put the status of an answer into `answered`, whose body nobody reads, or why there is none."""
    import httpx

    try:
        with httpx.stream("POST", url, json=body, timeout=_SECONDS) as answer:
            answered.append(answer.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        answered.append(error)


def _block(name: str, workspace: Path, line: str) -> None:
    import httpx
    from prefect.blocks.abstract import NotificationBlock, NotificationError
    from prefect.blocks.core import Block
    from prefect.exceptions import PrefectException

    async def send() -> None:
        block: Block = await Block.aload(name)
        if not isinstance(block, NotificationBlock):
            raise WbcError(f"Prefect's block {name} sends no notifications")
        sending: Awaitable[None] | None = block.notify(line, subject=f"wbc: {workspace.name}")
        if sending is not None:
            await sending

    try:
        asyncio.run(send())
    except (ValueError, RuntimeError, OSError, httpx.HTTPError, NotificationError, PrefectException) as error:
        raise WbcError(f"Prefect's block {name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def tell_failure(workspace: Path, message: str, what: str = RETRAINING_FAILED) -> None:
    """Say in one line that a scheduled run failed, and why. `what` failed is one of the two above."""
    why = re.sub(r"^Flow run encountered an exception: (?:WbcError: )?", "", message)
    tell(workspace, f"{workspace}: {what}: {why}")
