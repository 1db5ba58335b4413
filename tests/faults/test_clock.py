"""A clock that jumps both ways while a retraining runs, for all of its processes.

libfaketime 0.9.10 breaks `time.sleep` of Python 3.11, which waits by the monotonic clock. So a library of ten lines moves the
clock of the day, and nothing else: not timeouts, and not the times of files.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.life import NEXT, Retraining, outcome, succeeds, two_labels
from tests.faults.whole import assert_whole, kept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COMPILER = shutil.which("cc")
DAY = 24 * 3600
JUMPS = {"validate": 400 * DAY, "train": -400 * DAY, "evaluate": 0, "query": 3 * 3600, "package": -3 * 3600}
MOVED = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long moved(void) {
    char text[32] = {0};
    const char *name = getenv("WBC_TEST_CLOCK");
    int file = name ? open(name, O_RDONLY) : -1;
    long found = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0) close(file);
    return found > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *to) {
    int failed = syscall(SYS_clock_gettime, clock, to);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) to->tv_sec += moved();
    return failed;
}

int gettimeofday(struct timeval *to, void *zone) {
    int failed = syscall(SYS_gettimeofday, to, zone);
    if (!failed) to->tv_sec += moved();
    return failed;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The clock of a process and of all that it starts."""

    def __init__(self, folder: Path) -> None:
        self.file, self.library = folder / "clock", folder / "moved.so"
        (folder / "moved.c").write_text(MOVED)
        subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", self.library, folder / "moved.c"], check=True)
        self.jumps(0)

    def jumps(self, to: int) -> None:
        """Let it be so many seconds from the right time from now on."""
        written = self.file.with_suffix(".new")
        written.write_text(f"{to}\n")
        written.rename(self.file)

    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "WBC_TEST_CLOCK": str(self.file)}


@pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
def test_a_clock_that_jumps_both_ways_within_a_retraining(workspace: Path, tmp_path: Path) -> None:
    before, clock = kept(workspace), Clock(tmp_path)
    with Retraining(workspace, *NEXT, **clock.environment()) as retraining:
        for stage, to in JUMPS.items():
            retraining.reaches(stage)
            clock.jumps(to)
        code, said = retraining.process.wait(600), retraining.said.read_text()
    assert code == 0, said
    assert "Traceback" not in said
    first = outcome(workspace)
    assert (first["status"], len(first["rows"])) == ("done", 2)
    assert all(0 <= row["seconds"] < 3600 for row in first["rows"]), "a duration goes by no clock"
    succeeds(workspace, "labels", "import", str(two_labels(workspace, by="Dr. Bo")))
    assert_whole(workspace, before, lambda: succeeds(workspace, "retrain", "--ask", "3", "--commit"))
    assert outcome(workspace)["key"] != first["key"]
