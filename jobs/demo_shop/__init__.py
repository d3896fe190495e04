"""The demo shop: a seeded fashion shop with planted truth, for the demo, for tests and for scale.

It makes the two feeds that the pipeline ingests, `events.parquet` and `items.parquet`, and the truth behind them,
`truth.parquet` and `planted.json`: who has which taste, and how much of each kind of dirt the feed contains.

    assortment  items by an attribute grammar, and the shelves from which an item is drawn
    shoppers    tastes, how they drift, and when each user is there
    browsing    sessions with short intents → events, without dirt
    feed        dirt, the order in which the feed arrives, the files

Same spec, same bytes: every random number is a pure function of seed, purpose and what it is for (`randomness`).
No Spark: numpy and pyarrow alone.
"""
