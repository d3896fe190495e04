"""The snapshot engine: lagged, windowed sums of item vectors per user, exact in integers.

    files      finds a Delta table's Parquet files with the rows of some days, and cuts them into parts of equal work
    calendar   says at which snapshot date an event enters an LTE, and at which it leaves
    packing    packs a part's events as small integers grouped by user, in one blob per group of users
    sums       multiplies a group's blobs by the item vectors, which gives the snapshot rows of each date

    inputs     checks that the inputs of a snapshot are complete and unchanged
    snapshots  reads snapshots without Spark: a sample of users, and a tally of all rows


Only blobs of integers are shuffled; the item vectors are joined in the last stage.
"""
