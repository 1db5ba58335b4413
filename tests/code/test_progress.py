"""What a training says while it runs."""

import pytest

from flows.progress import SAY_SECONDS, TRAINING_LINE, Progress, TrainingLines, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_training_says_from_its_first_update_on_when_it_will_be_done(capfd: pytest.CaptureFixture[str]) -> None:
    """600 updates of a second each, the first of ten: a line for that, one every SAY_SECONDS, and one for a validation step."""
    clock = Clock()
    lines = TrainingLines(600, clock)
    for update in range(1, 41):
        clock.now += 10.0 if update == 1 else 1.0
        lines.updated(update)
    lines.validated({"update": 50, "validation_loss": 0.5, "validation_macro_f1": 0.9})
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "update     1 of 600: about 1 h 40 min left at the speed of this first one, the slowest",
        f"update    {1 + SAY_SECONDS:.0f} of 600: about 10 min left",
        f"update    {1 + 2 * SAY_SECONDS:.0f} of 600: about 9 min left",
        "update    50 of 600: macro-F1 90.0%, validation loss 0.500",
    ]
    assert all(TRAINING_LINE.match(line) for line in said), "the retraining shows them"


def test_one_that_goes_on_is_measured_from_where_it_went_on(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = TrainingLines(600, clock)
    clock.now += 1.0
    lines.updated(501)
    assert capfd.readouterr().err == "update   501 of 600: about 2 min left at the speed of this first one, the slowest\n"


def test_without_a_terminal_a_long_step_has_a_line_a_minute(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("flows.progress.time.monotonic", clock)
    with Progress().cycle(2, 1, 3) as doing:
        for second in range(130):
            clock.now += 1.0
            doing(f"training, update {second}")
    assert capfd.readouterr().err.splitlines() == [
        "cycle 2 (1 of 3): training, update 59",
        "cycle 2 (1 of 3): training, update 119",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3570, "1 h 0 min"), (4800, "1 h 20 min")]
)
def test_a_duration_as_a_person_says_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said
