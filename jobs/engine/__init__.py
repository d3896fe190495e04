"""The snapshot engine: lagged, windowed sums of item vectors per user, exact in integers.

    files      which Parquet files of a Delta table hold the rows of some days, cut into parts of equal work
    calendar   at which snapshot date an event enters an LTE, and at which it leaves
    packing    a part's events, as small integers grouped by user, one blob per group of users
    sums       a group's blobs times the item vectors: the snapshot rows of each date
    inputs     what a snapshot was made from: complete, and still the same?
    snapshots  a snapshot read again, without Spark: some users' LTEs, a tally of all rows

Ids travel, vectors wait: only blobs of integers are shuffled, and vectors meet them at the end.
"""
