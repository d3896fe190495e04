"""The cold-items benchmark hides items from a training: it removes all of their events and no others."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lte_model.training.training_set import open_training_set
from tests.benchmarks.bench_cold_items import WithoutItems
from tests.lte_model.small_shop import TRAINING_DATE


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.5, 0.9]))
@pytest.mark.parametrize("policy", ["lagged", "newest"])
@hypothesis_settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_hidden_item_has_no_event_and_no_other_loses_one(shop, policy, seed, share):
    settings = shop.model_copy(update={"model": shop.model.model_copy(update={"sequence": policy})})
    training_set = open_training_set(settings, TRAINING_DATE)
    hidden = np.random.default_rng(seed).random(len(training_set.catalogue)) < share
    fewer = WithoutItems(**vars(training_set), hidden=hidden)
    for split in ("train", "validation", "test"):
        whole, found = training_set.cases(split), fewer.cases(split)
        expected = []
        for case in range(len(whole)):
            items, targets = whole.sequence(case), int(whole.target_counts[case])
            if split == "test":
                expected.append((items.tolist(), targets))
                continue
            left = int((~hidden[items[len(items) - targets :]]).sum())
            if left if split == "train" else not hidden[whole.targets[case]]:
                expected.append((items[~hidden[items]].tolist(), left))
        assert [(found.sequence(i).tolist(), int(found.target_counts[i])) for i in range(len(found))] == expected
        assert split == "test" or not found.seen[hidden].any()
