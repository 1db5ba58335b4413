"""Which cells to ask a person about: the strategies, and the queue that they fill. It imports `core`, `network` and `cells`."""
