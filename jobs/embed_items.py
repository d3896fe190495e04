"""Writes the vectors of items that are new to a basis into `item_embeddings`. A vector is written once.

The job embeds in every basis in force, or in each `--basis`.
"""

import datetime
from collections.abc import Iterator

import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.recipes.bases import basis_in_force, load_basis
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse
from lte_model.command_line import CommandParser, asked_bases, run
from lte_model.domain.basis import CONTENT_COLUMNS, SemanticBasis
from lte_model.warehouse.tables import ITEM_EMBEDDINGS, ITEMS


def embed(items: DataFrame, basis: SemanticBasis) -> DataFrame:
    """(basis_id, item_id, vector) of the items; `vector` is null if the basis knows none of the item's words."""
    basis_id, state, template = basis.basis_id, basis.to_bytes(), basis.text_template

    def encode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        worker_basis = SemanticBasis.from_bytes(state, template)
        for batch in batches:
            vectors, known = worker_basis.encode(batch.select(CONTENT_COLUMNS).to_pylist())
            yield pa.RecordBatch.from_pydict(
                {
                    "basis_id": pa.repeat(basis_id, batch.num_rows),
                    "item_id": batch["item_id"],
                    "vector": pa.array(
                        [vector if is_known else None for vector, is_known in zip(vectors, known, strict=True)],
                        pa.list_(pa.float32()),
                    ),
                }
            )

    return items.select("item_id", *CONTENT_COLUMNS).mapInArrow(
        encode, "basis_id STRING, item_id STRING, vector ARRAY<FLOAT>"
    )


def embed_items(warehouse: Warehouse, date: datetime.date, basis_id: str = "") -> tuple[str, int, list[str]]:
    """Runs the job for one basis ("": that of the settings).

    Returns the basis id, the number of vectors written, and the ids of the items without a vector.
    """
    basis_id = basis_in_force(warehouse, basis_id)
    warehouse.create(ITEM_EMBEDDINGS)
    embedded = warehouse.read(ITEM_EMBEDDINGS).where(F.col("basis_id") == basis_id)
    new_items = warehouse.read(ITEMS).where(F.col("known_date") < date).join(embedded, "item_id", "left_anti")
    vectors = embed(new_items, load_basis(warehouse, basis_id)).cache()
    without = [row.item_id for row in vectors.where("vector IS NULL").select("item_id").orderBy("item_id").collect()]
    written = warehouse.as_stored(ITEM_EMBEDDINGS, vectors.where("vector IS NOT NULL"))
    count = written.count()
    if count:
        # A merge, not an append: two runs at once must not write an item twice.
        target = DeltaTable.forPath(warehouse.spark, warehouse.path(ITEM_EMBEDDINGS))
        (
            target.alias("ours")
            .merge(written.alias("new"), "ours.basis_id = new.basis_id AND ours.item_id = new.item_id")
            .whenNotMatchedInsertAll()
            .execute()
        )
    return basis_id, count, without


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "embed the items known before this day")
    parser.add_bases("embed in this basis")
    arguments, settings, date = parser.read()
    with spark_session(settings, "embed_items", date) as spark:
        done = [embed_items(Warehouse(spark, settings), date, basis) for basis in asked_bases(arguments, settings)]
    for basis_id, count, without in done:
        print(f"basis {basis_id}: {count:,} items embedded, {len(without):,} without a word that the basis knows")
        if without:
            print(f"items without a vector: {', '.join(without[:20])}{' …' if len(without) > 20 else ''}")


if __name__ == "__main__":
    run(main)
