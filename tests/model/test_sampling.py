"""The batches of a training: whole epochs, hard samples, rarity."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.training.batches import BatchPlan
from wbc_model.training.hard_samples import hard_sample_weights


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(2, 50),
    batch=st.integers(2, 30),
    hard_share=st.floats(0, 0.9),
    start=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_regular_samples_are_whole_shuffled_epochs(samples: int, batch: int, hard_share: float, start: int, seed: int):
    plan = BatchPlan(samples, batch, int(hard_share * batch), start, seed)
    drawn = torch.cat([plan.regular(update) for update in range(20)])
    for epoch in range(len(drawn) // samples):
        assert sorted(drawn[epoch * samples : (epoch + 1) * samples].tolist()) == list(range(samples))
    weights = torch.ones(samples)
    for update in range(20):
        total = len(plan.regular(update)) + len(plan.drawn_again(update, weights))
        assert total == batch
        assert len(plan.drawn_again(update, weights)) == (plan.again if update >= start else 0)


def test_a_batch_belongs_to_seed_and_update():
    plan, other = BatchPlan(100, 16, 4, 2, seed=1), BatchPlan(100, 16, 4, 2, seed=2)
    weights = torch.rand(100)
    assert torch.equal(plan.regular(7), plan.regular(7))
    assert torch.equal(plan.drawn_again(7, weights), plan.drawn_again(7, weights))
    assert not torch.equal(plan.regular(7), other.regular(7))
    assert not torch.equal(plan.regular(7), plan.regular(8))


def test_hard_weights_by_hand():
    """Class 0 has 4 cells, half of them hard: the two with the highest loss. Class 1 has 1 cell, class 2 has 2.
    Rarity 1/2: 1/2, 1, the root of 1/2."""
    losses = torch.tensor([0.1, 0.9, 0.5, float("nan"), 0.2, 0.7, 0.3])
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    weights = hard_sample_weights(losses, labels, fraction=0.5, rarity=0.5)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.5, 0.5, 0.0, 1.0, 0.5**0.5, 0.0]))


def test_rare_classes_are_drawn_more_often():
    labels = torch.tensor([0] * 100 + [1] * 4)
    weights = hard_sample_weights(torch.rand(104), labels, fraction=1.0, rarity=1.0)
    plan = BatchPlan(104, 1000, 900, 1, seed=0)
    drawn = labels[plan.drawn_again(5, weights)]
    assert 0.45 < (drawn == 1).float().mean() < 0.55  # 4 cells weigh as much as 100
