"""Invariant 2 and the grid: a basis is a frozen map that gives an item the same vector beside any other items."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lte_model.domain.basis import GRID, MAX_EVENTS, SemanticBasis, to_grid, to_vector
from lte_model.errors import LTEError

TEMPLATE = "{title} {brand} {category} {description}"
WORDS = ("navy", "linen", "shirt", "red", "wool", "coat", "silk", "scarf", "black", "boots", "green", "jeans")
items = st.builds(
    lambda words, brand: {"title": " ".join(words), "brand": brand, "category": None, "description": None},
    st.lists(st.sampled_from((*WORDS, "quux", "'; --", "日本", "")), max_size=5),
    st.sampled_from(["Acme", "Zeta", None]),
)


def catalogue():
    """Items with texts of word pairs, so that items share words and pairs."""
    return [
        {"title": f"{a} {b} {c}", "brand": brand, "category": None, "description": None}
        for a, b in pairwise(WORDS)
        for c in WORDS[:4]
        for brand in ("Acme", "Zeta")
    ]


BASIS = SemanticBasis.fit(catalogue(), TEMPLATE, 8)


@given(batch=st.lists(items, min_size=1, max_size=12), data=st.data())
def test_an_items_vector_does_not_depend_on_its_company(batch, data):
    together, known = BASIS.encode(batch)
    index = data.draw(st.integers(0, len(batch) - 1))
    alone, known_alone = BASIS.encode([batch[index]])
    assert np.array_equal(together[index], alone[0]) and known[index] == known_alone[0]


@given(batch=st.lists(items, min_size=1, max_size=12))
def test_vectors_lie_on_the_grid_and_have_unit_length_or_none(batch):
    vectors, known = BASIS.encode(batch)
    units = to_grid(vectors)
    assert np.array_equal(units / GRID, vectors)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert np.allclose(norms[known], 1, atol=1e-3) and not units[~known].any()


def test_the_id_is_of_the_content_and_survives_storage():
    again = SemanticBasis.fit(list(reversed(catalogue())), TEMPLATE, 8)
    stored = SemanticBasis.from_bytes(BASIS.to_bytes(), TEMPLATE)
    other = SemanticBasis.fit(catalogue()[:-1], TEMPLATE, 8)
    assert BASIS.basis_id == again.basis_id == stored.basis_id != other.basis_id
    assert np.array_equal(stored.encode(catalogue())[0], BASIS.encode(catalogue())[0])


def test_items_of_like_words_are_near():
    (shirt, like, unlike), _ = BASIS.encode(
        [{"title": "navy linen shirt"}, {"title": "linen shirt navy"}, {"title": "green jeans boots"}]
    )
    assert shirt @ like > shirt @ unlike


@given(
    counts=st.lists(st.integers(1, MAX_EVENTS), min_size=1, max_size=5),
    component=st.integers(-GRID, GRID),
)
def test_the_sum_of_equal_vectors_divides_back_to_the_vector(counts, component):
    sums = np.array([[component * count] for count in counts])
    assert np.abs(sums).max() < 2**31
    assert to_vector(sums, np.array(counts)).tolist() == [[component / GRID]] * len(counts)


TEXT = " ".join(f"w{number}" for number in range(60))


def titled(*titles):
    return [{"title": title, "brand": None, "category": None, "description": None} for title in titles]


ONE_TEXT = {
    "one text": titled(*[TEXT] * 100),
    "one text in other cases and marks": titled(*[TEXT, TEXT.upper(), f"  {TEXT}!", TEXT.replace(" ", ", ")] * 25),
    "one text, and another word in each": titled(*(f"unique{number} {TEXT}" for number in range(100))),
    "one brand": [{"title": None, "brand": TEXT, "category": str(row), "description": None} for row in range(100)],
}
"""Catalogues of which no word that two items share tells them apart."""


@pytest.mark.parametrize("dimensions", [1, 2, 8, 50])
@pytest.mark.parametrize("made", ONE_TEXT.values(), ids=ONE_TEXT)
def test_a_catalogue_of_one_text_has_no_basis(made, dimensions):
    with pytest.raises(LTEError, match="the 100 items have the same words, so that no basis can tell them apart"):
        SemanticBasis.fit(made, "{title} {brand}", dimensions)


@given(st.lists(st.sampled_from([TEXT, f"{TEXT} red", f"{TEXT} blue", "red blue"]), min_size=20, max_size=60))
def test_a_basis_of_whatever_texts_is_of_numbers_or_refused(titles):
    try:
        basis = SemanticBasis.fit(titled(*titles), "{title}", 4)
    except LTEError as error:
        assert "same words" in str(error) or "dimensions needs more than" in str(error)
        return
    vectors, known = basis.encode(titled(*titles))
    assert not basis.broken and np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors[known], axis=1), 1, atol=1e-3)


def test_a_basis_may_have_one_dimension():
    vectors, known = SemanticBasis.fit(catalogue(), TEMPLATE, 1).encode(catalogue())
    assert known.all() and set(np.unique(vectors)) <= {-1.0, 1.0}


@pytest.mark.parametrize("name", ["weights", "projection", "offset"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_in_a_basis_is_named(name, number):
    tensor = getattr(BASIS, name).copy()
    tensor.flat[3] = number
    assert dataclasses.replace(BASIS, **{name: tensor}).broken == f"{name} with numbers that are none (NaN)"


def test_a_vector_off_the_grid_is_refused():
    with pytest.raises(LTEError, match="not multiples of 2\\^-14"):
        to_grid(np.array([[0.1]]))


@pytest.mark.parametrize("template", ["{colour}", "{title.__class__}", "{0}"])
def test_a_template_is_filled_never_evaluated(template):
    with pytest.raises(LTEError, match=r"basis.text_template names"):
        SemanticBasis.fit(catalogue(), template, 8)


def test_a_catalogue_too_small_is_named():
    with pytest.raises(LTEError, match=r"a basis of 64 dimensions needs more than 64 items.*lower basis.dimensions"):
        SemanticBasis.fit(catalogue()[:20], TEMPLATE, 64)
