import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lte_model.ranker.long_memory import LinearAttentionMemory

WIDTH = 8


def make_memory() -> LinearAttentionMemory:
    torch.manual_seed(0)
    return LinearAttentionMemory(WIDTH, heads=2).eval()


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_a_token_reads_the_average_of_the_values_weighted_by_the_kernel(lengths, seed):
    """Compares with the same attention computed naively: one weight for each pair of token and older event."""
    memory, random = make_memory(), torch.Generator().manual_seed(seed)
    x, older = (torch.randn(len(lengths), events, WIDTH, generator=random) for events in (3, 5))
    found = memory(x, older, torch.tensor(lengths))
    for user, length in enumerate(lengths):
        if not length:
            assert not found[user].any()
            continue
        key, value = memory.key_value(memory.older_norm(older[user, :length])).chunk(2, dim=1)
        query = memory.query(memory.norm(x[user]))
        read = []
        for head in (slice(0, 4), slice(4, 8)):
            q, k = (torch.nn.functional.elu(part[:, head]) + 1 for part in (query, key))
            weights = q @ k.T  # (tokens, older events)
            read.append(weights / weights.sum(dim=1, keepdim=True) @ value[:, head])
        torch.testing.assert_close(found[user], memory.output(torch.cat(read, dim=1)), atol=1e-5, rtol=1e-4)


def test_a_token_reads_no_other_token():
    """Each token reads only the older events, so that the memory leaks no token's future."""
    memory = make_memory()
    x, older, lengths = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH), torch.tensor([5, 3])
    changed = x.clone()
    changed[:, 2] = torch.randn(2, WIDTH)
    before, after = memory(x, older, lengths), memory(changed, older, lengths)
    others = [0, 1, 3]
    torch.testing.assert_close(before[:, others], after[:, others])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_older_events_have_no_order():
    memory = make_memory()
    x, older = torch.randn(1, 4, WIDTH), torch.randn(1, 5, WIDTH)
    length = torch.tensor([5])
    torch.testing.assert_close(memory(x, older, length), memory(x, older.flip(1), length))
