"""`wbc train` as a script, as Fabric starts it once for each rank: `python -m tests.model.two_ranks WORKSPACE [UPDATE]`.

Writes a checkpoint at every validation step and each rank's history to `history-<rank>.json`, and to `began-<rank>` the update
that it went on from. Given UPDATE, the first rank kills itself
after the checkpoint of that update.
"""

import json
import os
import signal
import sys
from pathlib import Path

from flows.guard import watch_flow
from flows.pipeline import stages
from wbc_model.training import pseudo_labels, train


class Watched(train.Training):
    """A training that is seen from outside."""

    die_at = 0

    def resume(self) -> None:
        super().resume()
        Path(f"began-{self.fabric.global_rank}").write_text(str(self.progress.update))

    def save(self) -> None:
        super().save()
        assert self.pseudo is not None
        assert self.pseudo.chosen.weights.any()
        rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in self.progress.history]
        Path(f"history-{self.fabric.global_rank}.json").write_text(json.dumps(rows))
        if self.fabric.is_global_zero and self.progress.update == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    watch_flow()
    os.chdir(sys.argv[1])
    Watched.die_at = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    train.CHECKPOINT_SECONDS = 0.0
    train.PATIENCE = 0.4
    pseudo_labels.THRESHOLD, pseudo_labels.START_SHARE = 0.2, 0.0
    # The code that a checkpoint is of is the module's own: this one here is no part of the learner.
    Watched.__module__, Watched.__qualname__ = train.Training.__module__, train.Training.__qualname__
    train.Training = Watched
    stages.train(Path.cwd())


if __name__ == "__main__":
    main()
