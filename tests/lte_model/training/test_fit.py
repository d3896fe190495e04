"""The batches of an epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.training.fit import epoch_batches


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    epoch=st.integers(1, 5),
)
@settings(deadline=None)
def test_an_epoch_holds_every_case_once(lengths, batch_size, seed, epoch):
    lengths = np.array(lengths)
    batches = epoch_batches(lengths, lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    again = epoch_batches(lengths, lengths, batch_size, seed, epoch)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    budget = max(1, round(batch_size * lengths.mean()))
    assert max(lengths[batch].sum() for batch in batches) <= budget + lengths.max()


def test_epochs_differ_in_order_and_spare_padding():
    lengths = np.random.default_rng(0).integers(1, 51, 5000)
    first, second = (epoch_batches(lengths, lengths, 64, 0, epoch) for epoch in (1, 2))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.1 * lengths.sum()
