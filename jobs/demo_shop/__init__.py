"""The demo shop: a seeded fashion shop with planted truth, for the demo, for tests and for scale.

It makes the two feeds that the pipeline ingests, `events.parquet` and `items.parquet`, and the ground truth,
`truth.parquet` and `planted.json`: each user's taste, and the amount of each kind of dirt in the feed.

    assortment  items by an attribute grammar, and the shelves from which an item is drawn
    shoppers    tastes, how they drift, and when each user is there
    browsing    sessions with short intents → clean events
    feed        dirt, order of arrival, and the files

The same spec gives the same bytes: each random number is a pure function of the seed, its purpose and its user, item or
event (`randomness`). The package needs only numpy and pyarrow, no Spark.
"""
