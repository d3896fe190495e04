"""Makes the shop's items from an attribute grammar, and the shelves from which items are drawn.

An item has a category, a noun and a material of that category, a colour, a brand, a style of the brand, and a price.
Title and description contain all of these in words, so that a text encoder sees what the shoppers choose by.

A *shelf* holds the items of the whole shop, of a category, or of a category with one value of a facet (style, colour,
material, brand). A shelf lists its items in the order in which they became known, so that the items on sale on a day
are a prefix. A draw by popularity is then one search in cumulative sums, which is exact and fast at any size.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.demo_shop import randomness
from jobs.demo_shop.spec import DAYS, QUARTER_OF_DAY, QUARTERS, START, ShopSpec, item_id


@dataclass(frozen=True)
class Category:
    """`demand` is relative by season, from winter to autumn. `price` is the median in the shop's currency."""

    name: str
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    demand: tuple[float, float, float, float]
    price: float


CATEGORIES = (
    Category("Coats", ("overcoat", "parka", "trench coat"), ("wool", "cotton", "nylon"), (2.6, 0.7, 0.1, 1.6), 180),
    Category("Jackets", ("blazer", "bomber jacket", "gilet"), ("wool", "cotton", "leather"), (1.0, 1.5, 0.4, 1.5), 130),
    Category("Knitwear", ("jumper", "cardigan", "roll-neck"), ("wool", "cashmere", "cotton"), (2.2, 0.7, 0.2, 1.7), 80),
    Category("Shirts", ("shirt", "overshirt", "blouse"), ("linen", "cotton", "silk"), (0.7, 1.4, 1.3, 0.9), 60),
    Category("T-shirts", ("t-shirt", "polo shirt", "top"), ("cotton", "linen", "jersey"), (0.4, 1.2, 2.3, 0.6), 28),
    Category("Dresses", ("midi dress", "wrap dress", "gown"), ("silk", "viscose", "linen"), (0.5, 1.5, 1.9, 0.6), 90),
    Category("Trousers", ("chinos", "slacks", "joggers"), ("cotton", "wool", "linen"), (1.0, 1.1, 0.8, 1.2), 70),
    Category("Jeans", ("jeans", "bootcut jeans", "dungarees"), ("denim", "corduroy"), (1.1, 1.0, 0.6, 1.3), 85),
    Category("Skirts", ("skirt", "mini skirt", "midi skirt"), ("viscose", "denim", "wool"), (0.6, 1.4, 1.4, 0.8), 55),
    Category("Shorts", ("shorts", "bermuda shorts"), ("cotton", "linen", "denim"), (0.1, 0.9, 2.9, 0.2), 40),
    Category("Swimwear", ("swimsuit", "bikini", "swim shorts"), ("nylon", "jersey"), (0.2, 0.8, 2.9, 0.1), 45),
    Category("Boots", ("ankle boots", "tall boots", "winter boots"), ("leather", "suede"), (2.2, 0.5, 0.1, 1.9), 140),
    Category("Sneakers", ("sneakers", "runners", "pumps"), ("leather", "canvas", "nylon"), (0.8, 1.3, 1.1, 1.0), 95),
    Category("Sandals", ("sandals", "slides", "espadrilles"), ("leather", "canvas", "suede"), (0.1, 1.2, 2.6, 0.1), 60),
    Category("Bags", ("tote", "backpack", "clutch"), ("leather", "canvas", "nylon"), (1.2, 0.9, 0.9, 1.0), 110),
    Category("Scarves", ("scarf", "beanie", "shawl"), ("wool", "cashmere", "silk"), (2.5, 0.4, 0.1, 1.4), 35),
)  # fmt: skip

STYLES = {
    "relaxed": "an easy, loose cut for slow days",
    "tailored": "cut close, with sharp lines",
    "sporty": "made to move in",
    "minimal": "plain, with nothing to distract",
    "romantic": "soft, with flowing details",
    "vintage": "after a pattern of the seventies",
    "street": "oversized and bold",
    "classic": "a timeless shape",
}
COLOURS = (
    "navy", "black", "white", "grey", "beige", "olive", "burgundy", "rust", "mustard", "sky blue", "pink", "green",
)  # fmt: skip
MATERIALS = tuple(sorted({material for category in CATEGORIES for material in category.materials}))
BRANDS = (
    "Aldermoor", "Brisa Sur", "Calloway & Finch", "Dunlin", "Eskerfold", "Fenharrow", "Giltsea", "Hollin Row",
    "Ivarsund", "Juniper Vale", "Kestrel Yard", "Lumenor", "Marrowby", "Nordhavn Atelier", "Ostrava Line", "Pellworth",
    "Quayside Nine", "Rookmere", "Solvane", "Thistleby",
)  # fmt: skip
TIERS = (("affordable", 0.6), ("mid-range", 1.0), ("premium", 1.9))
"""A brand's price level: the word in the description, and the factor on the category's price."""

FACETS = ("style", "colour", "material", "brand")
FACET_VALUES = (tuple(STYLES), COLOURS, MATERIALS, BRANDS)

KNOWN_AT_START = 0.7
"""The share of items known on the first day; the others become known evenly over the two years."""

ZIPF_EXPONENT = 0.8
TREND = 1.6
"""From one eighth of the two years to the next, an item's log-popularity changes by at most half of this."""


@dataclass(frozen=True)
class Shelves:
    """All S shelves in one array of P places. An item is on 2 + len(FACETS) shelves.

    begin (S + 1,): a shelf's first place. items (P,): the item at a place. parent (S,): the wider shelf to use
    if this one is empty. available (S, DAYS): how many places of the shelf, from its first, are on sale on a day.
    cumulative (QUARTERS · P + 1,): cumulative sum of popularity over all places, for one quarter after another.
    """

    begin: np.ndarray
    items: np.ndarray
    parent: np.ndarray
    available: np.ndarray
    cumulative: np.ndarray

    def draw(self, shelf: np.ndarray, day: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """An item on sale for each (shelf, day ≥ 1), drawn by popularity in that quarter; `chance` in [0, 1).

        An empty shelf is replaced by its category's shelf, and if need be by the whole shop, which is never empty.
        """
        for _ in range(2):
            shelf = np.where(self.available[shelf, day] > 0, shelf, self.parent[shelf])
        first = QUARTER_OF_DAY[day] * len(self.items) + self.begin[shelf]
        end = first + self.available[shelf, day]
        low, high = self.cumulative[first], self.cumulative[end]
        place = np.searchsorted(self.cumulative, low + chance * (high - low), side="right") - 1
        return self.items[np.clip(place, first, end - 1) % len(self.items)]


@dataclass(frozen=True)
class Assortment:
    """M items as codes. known_day (M,) is in days since START; items are on sale a day later. facets is (4, M)."""

    known_day: np.ndarray
    category: np.ndarray
    noun: np.ndarray
    facets: np.ndarray
    tier: np.ndarray
    price: np.ndarray
    shelves: Shelves

    def __len__(self) -> int:
        return len(self.category)

    def facet_shelf_of(self, item: np.ndarray, facet: np.ndarray) -> np.ndarray:
        """The shelf of the items with `item`'s category and its value of `facet`."""
        return facet_shelf(facet, self.category[item], self.facets[facet, item])


WHOLE_SHOP = 0
_SIZES = np.array([len(values) for values in FACET_VALUES])
_FIRST_OF_FACET = 1 + len(CATEGORIES) + np.concatenate([[0], np.cumsum(_SIZES * len(CATEGORIES))])


def category_shelf(category: np.ndarray) -> np.ndarray:
    """The shelf of each category, given by its index in `CATEGORIES`."""
    return 1 + category


def facet_shelf(facet: np.ndarray | int, category: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The shelf of `category` with `value` of the facet, given by its index in `FACETS`."""
    return _FIRST_OF_FACET[facet] + category * _SIZES[facet] + value


def make_assortment(spec: ShopSpec) -> Assortment:
    """The items of a shop and its shelves."""
    item = np.arange(spec.items)
    state = randomness.keys(spec.seed, _ITEM_KEYS, item)
    known_day = np.where(
        randomness.uniform(state, "known at start") < KNOWN_AT_START, 0, 1 + randomness.whole(state, "known", DAYS - 1)
    )
    known_day[0] = 0  # at least one item is known on the first day, whatever the seed
    category = randomness.whole(state, "category", len(CATEGORIES))
    noun = _one_of(state, "noun", [len(c.nouns) for c in CATEGORIES], category)
    brand = randomness.whole(state, "brand", len(BRANDS))
    of_brand = randomness.keys(spec.seed, _BRAND_KEYS, np.arange(len(BRANDS)))
    tier = randomness.whole(of_brand, "tier", len(TIERS))[brand]
    suits = np.array([[MATERIALS.index(c.materials[k % len(c.materials)]) for k in range(3)] for c in CATEGORIES])
    material = suits[category, _one_of(state, "material", [len(c.materials) for c in CATEGORIES], category)]
    # three of four items have one of the brand's two house styles, so that brands are informative
    house = np.stack([randomness.whole(of_brand, f"house style {k}", len(STYLES)) for k in range(2)], axis=1)
    style = np.where(
        randomness.uniform(state, "in house style") < 0.75,
        house[brand, randomness.whole(state, "which house style", 2)],
        randomness.whole(state, "style", len(STYLES)),
    )
    facets = np.stack([style, randomness.whole(state, "colour", len(COLOURS)), material, brand])
    price = np.array([c.price for c in CATEGORIES])[category] * np.array([factor for _, factor in TIERS])[tier]
    price = np.maximum(np.round(price * (0.7 + 0.6 * randomness.uniform(state, "price"))), 5) - 0.05
    shelves = _make_shelves(known_day, category, facets, _popularity(state))
    return Assortment(known_day, category, noun, facets, tier, price, shelves)


def items_table(assortment: Assortment) -> pa.Table:
    """The rows of `items.parquet`, in the order in which they became known."""
    order = np.lexsort((np.arange(len(assortment)), assortment.known_day))
    titles, descriptions = zip(*(_in_words(assortment, item) for item in order), strict=True)
    known = np.datetime64(START) + assortment.known_day[order]
    return pa.table(
        {
            "item_id": pa.array([item_id(item) for item in order], pa.string()),
            "title": pa.array(titles, pa.string()),
            "description": pa.array(descriptions, pa.string()),
            "category": pa.array([CATEGORIES[c].name for c in assortment.category[order]], pa.string()),
            "brand": pa.array([BRANDS[b] for b in assortment.facets[3, order]], pa.string()),
            "price": pa.array(assortment.price[order], pa.float64()),
            "known_date": pa.array(known, pa.date32()),
        }
    )


_ITEM_KEYS, _BRAND_KEYS = 1, 2  # the first level of every key says what the numbers are drawn for


def _one_of(state: np.ndarray, purpose: str, sizes: list[int], row: np.ndarray) -> np.ndarray:
    return randomness.whole(state, purpose, np.array(sizes)[row])


def _popularity(state: np.ndarray) -> np.ndarray:
    """(QUARTERS, M): a Zipf law over random ranks, times a random walk over the quarters."""
    rank = np.argsort(np.argsort(randomness.uniform(state, "rank"), kind="stable"), kind="stable")
    steps = [TREND * (randomness.uniform(state, f"trend {quarter}") - 0.5) for quarter in range(QUARTERS)]
    return (1.0 + rank) ** -ZIPF_EXPONENT * np.exp(np.cumsum(steps, axis=0))


def _make_shelves(known_day: np.ndarray, category: np.ndarray, facets: np.ndarray, popularity: np.ndarray) -> Shelves:
    count = int(_FIRST_OF_FACET[-1])
    items = np.arange(len(category))
    stands_on = [np.full(len(items), WHOLE_SHOP), category_shelf(category)]
    stands_on += [facet_shelf(facet, category, facets[facet]) for facet in range(len(FACETS))]
    shelf, item = np.concatenate(stands_on), np.tile(items, len(stands_on))
    order = np.lexsort((item, known_day[item], shelf))
    shelf, item = shelf[order], item[order]
    parent = np.full(count, WHOLE_SHOP)
    for facet, size in enumerate(_SIZES):
        of_facet = np.arange(_FIRST_OF_FACET[facet], _FIRST_OF_FACET[facet + 1])
        parent[of_facet] = category_shelf((of_facet - of_facet[0]) // size)
    known = np.bincount(shelf * DAYS + known_day[item], minlength=count * DAYS).reshape(count, DAYS)
    available = np.zeros((count, DAYS), dtype=np.int32)
    available[:, 1:] = np.cumsum(known, axis=1)[:, :-1]
    return Shelves(
        begin=np.searchsorted(shelf, np.arange(count + 1)),
        items=item,
        parent=parent,
        available=available,
        cumulative=np.concatenate([[0.0], np.cumsum(popularity[:, item])]),
    )


def _in_words(assortment: Assortment, item: int) -> tuple[str, str]:
    """Title and description: "Navy linen overshirt, relaxed"."""
    category = CATEGORIES[assortment.category[item]]
    style, colour, material, brand = (FACET_VALUES[f][assortment.facets[f, item]] for f in range(len(FACETS)))
    noun = category.nouns[assortment.noun[item]]
    season = ("winter", "spring", "summer", "autumn")[int(np.argmax(category.demand))]
    tier = TIERS[assortment.tier[item]][0]
    title = f"{colour.capitalize()} {material} {noun}, {style}"
    made = f"{noun.capitalize()} in {colour} {material} by {brand}."
    return title, f"{made} {style.capitalize()}: {STYLES[style]}. {category.name} for {season}, {tier}."
