"""No process outlives the flow that started it.

A SIGKILL cannot be caught, and DVC starts the stages through a shell. So a flow cannot take its children with it. The children
watch instead: a flow names itself in the environment. A child ends at once when its flow is gone, or anyone between the two. DVC
itself is left alone and finishes the file that it is writing; it ends with its stage.

`python -m flows.guard MODULE ARGUMENTS` runs another module so guarded (the Prefect server).
"""

import os
import runpy
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psutil

FLOW: Final = "WBC_FLOW"  # "<pid>:<when it began>" of the flow this process works for
_LOOK_SECONDS: Final = 0.3
ORPHANED: Final = 70


def flow_token() -> str:
    """What a flow puts under FLOW into its children's environment."""
    import psutil

    return f"{os.getpid()}:{began(psutil.Process()):.2f}"


def began(process: "psutil.Process") -> float:
    """Seconds from the start of the machine to that of a process. By the time of day a process would seem to be another one as
    soon as the clock is put right."""
    import psutil

    return process.create_time() - psutil.boot_time()


def alive(pid: int, created: float) -> bool:
    """Whether this very process still runs; a number given to another process since, or a zombie, does not count."""
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(began(process) - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def watch_flow() -> None:
    """End this process as soon as the flow it works for, or a process in between, is gone; where no flow is named, a later
    rank of a training on several devices as soon as the first, which started it, is gone. Otherwise nothing."""
    token = os.environ.get(FLOW, "")
    if token:
        watched = _flow_and_between(token)
    elif os.environ.get("LOCAL_RANK", "0") != "0":
        import psutil

        watched = [(parent.pid, began(parent)) for parent in psutil.Process().parents()[:1]]
    else:
        return

    def watch() -> None:
        while all(alive(*process) for process in watched):
            time.sleep(_LOOK_SECONDS)
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="flow-guard", daemon=True).start()


def _flow_and_between(token: str) -> list[tuple[int, float]]:
    """Process ids of the flow and of every process between it and this one, and when each began."""
    import psutil

    pid, _, created = token.partition(":")
    watched = [(int(pid), float(created))]
    for parent in psutil.Process().parents():
        if parent.pid == int(pid):
            return watched
        watched.append((parent.pid, began(parent)))
    return watched[:1]  # the flow is no ancestor: started by hand with its environment, or orphaned already


def main() -> None:
    """Run a module guarded."""
    watch_flow()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
