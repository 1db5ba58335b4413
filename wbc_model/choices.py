"""The choices that params.yaml and the command line share, each by its names. Imports nothing: `wbc --help` is fast."""

from typing import Final, Literal

PresetName = Literal["small", "standard", "full"]
Annotator = Literal["oracle", "people"]
RUNNERS: Final = ("local", "dask")
# The names that wbc_model.acquisition.strategies registers its strategies under; a test compares them.
Acquisition = Literal[
    "random",
    "entropy",
    "margin",
    "balanced_entropy",
    "balanced_margin",
    "rare_threshold",
    "learning_loss",
    "diverse_loss",
    "badge",
    "k_center",
    "typiclust",
    "colour_cover",
]
AUTO: Final = "auto"
Candidates = int | Literal["auto"]  # that a strategy sees
# Values of several parameters in one word; `flows.retraining.methods` has them.
Method = Literal["paper", "default"]
