"""Every table of the warehouse: its name, its columns, the job that writes it, its layout."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table's name, its columns as SQL, the job that writes it, and how its files are laid out.

    `statistics` are the columns whose range Delta records per file, so that a reader can skip files. Delta's log keeps
    these values as they are, and outlives the rows: a column that can identify a user must not be among them.
    With `deletion_vectors` a merge writes only the changed rows, instead of every file that holds one; Spark and Polars
    can read such a table, pyarrow can't.
    """

    name: str
    columns: str
    written_by: str
    partitioned_by: tuple[str, ...] = ()
    clustered_by: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    deletion_vectors: bool = False

    @property
    def layout(self) -> str:
        """The clauses of CREATE TABLE after the columns."""
        properties = {
            "delta.enableDeletionVectors": str(self.deletion_vectors).lower(),
            # The log must last until maintenance knows which versions the registered models name.
            "delta.logRetentionDuration": "interval 365 days",
        }
        if self.statistics:
            properties["delta.dataSkippingStatsColumns"] = ",".join(self.statistics)
        listed = ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())
        clauses = [f"TBLPROPERTIES ({listed})"]
        if self.partitioned_by:
            clauses.append(f"PARTITIONED BY ({', '.join(self.partitioned_by)})")
        if self.clustered_by:
            clauses.append(f"CLUSTER BY ({', '.join(self.clustered_by)})")
        return " ".join(clauses)


EVENTS = Table(
    "events",
    """user_id STRING NOT NULL, item_id STRING NOT NULL, event_ts TIMESTAMP NOT NULL, event_date DATE NOT NULL,
    event_type STRING, price DOUBLE, quantity DOUBLE, rating DOUBLE, known_date DATE NOT NULL""",
    "jobs.ingest_events",
    # A file holds several days, and its statistics say which. A partition per day would be thousands of tiny files for
    # a small shop with a long history.
    clustered_by=("known_date",),
    statistics=("known_date", "event_date"),
)
ITEMS = Table(
    "items",
    """item_id STRING NOT NULL, title STRING, description STRING, category STRING, brand STRING, price DOUBLE,
    known_date DATE NOT NULL""",
    "jobs.ingest_items",
)
QUARANTINE = Table(
    "quarantine",
    """feed STRING NOT NULL, known_date DATE NOT NULL, reason STRING NOT NULL, source STRING, row STRING""",
    "jobs.ingest_events and jobs.ingest_items",
    partitioned_by=("feed",),
    statistics=("known_date",),
)
INGESTED_DAYS = Table(
    "ingested_days",
    """feed STRING NOT NULL, known_date DATE NOT NULL, ingested_for DATE NOT NULL, rows_read BIGINT NOT NULL,
    rows_kept BIGINT NOT NULL, rows_quarantined BIGINT NOT NULL, exact_duplicates BIGINT NOT NULL,
    rows_erased BIGINT NOT NULL, content_hash DECIMAL(38, 0) NOT NULL""",
    "jobs.ingest_events and jobs.ingest_items",
    partitioned_by=("feed",),
    statistics=("known_date",),
)
SEMANTIC_BASES = Table(
    "semantic_bases",
    """basis_id STRING NOT NULL, encoder STRING NOT NULL, dimensions INT NOT NULL, text_template STRING NOT NULL,
    fitted_on DATE NOT NULL, fitted_items BIGINT NOT NULL, state BINARY NOT NULL""",
    "jobs.fit_basis",
)
ITEM_EMBEDDINGS = Table(
    "item_embeddings",
    "basis_id STRING NOT NULL, item_id STRING NOT NULL, vector ARRAY<FLOAT> NOT NULL",
    "jobs.embed_items",
    partitioned_by=("basis_id",),
)
ITEM_ENCODINGS = Table(
    "item_encodings",
    """basis_id STRING NOT NULL, encoder_id STRING NOT NULL, fitted_on DATE NOT NULL, item_id STRING NOT NULL,
    vector ARRAY<FLOAT> NOT NULL""",
    "jobs.encode_items",
    partitioned_by=("basis_id", "fitted_on"),
)

_LTE = """user_id STRING NOT NULL, user_bucket INT NOT NULL, vector_sum ARRAY<INT> NOT NULL, event_count INT NOT NULL,
    newest_event_date DATE NOT NULL, lag_days INT NOT NULL, window_days INT NOT NULL, snapshot_date DATE NOT NULL,
    basis_id STRING NOT NULL, representation STRING NOT NULL"""

LTE_SNAPSHOTS = Table(
    "lte_snapshots",
    _LTE,
    "jobs.snapshot_lte",
    partitioned_by=("basis_id", "representation", "snapshot_date"),
    # An incremental run finds the rows of its users by bucket: jobs/engine/packing.py.
    statistics=("user_bucket",),
)
SNAPSHOT_ACCOUNTS = Table(
    "snapshot_accounts",
    """snapshot_date DATE NOT NULL, basis_id STRING NOT NULL, representation STRING NOT NULL, lag_days INT NOT NULL,
    window_days INT NOT NULL, inputs STRING NOT NULL, events_version BIGINT NOT NULL, made_from DATE,
    users BIGINT NOT NULL, encoder_id STRING""",
    "jobs.snapshot_lte",
    partitioned_by=("basis_id", "representation"),
)
LTE_LIVE = Table(
    "lte_live",
    _LTE,
    "jobs.publish_lte",
    partitioned_by=("basis_id", "representation"),
    statistics=("user_bucket",),
    deletion_vectors=True,
)
PUBLICATIONS = Table(
    "publications",
    """snapshot_date DATE NOT NULL, basis_id STRING NOT NULL, representation STRING NOT NULL, lag_days INT NOT NULL,
    window_days INT NOT NULL, inputs STRING NOT NULL, users BIGINT NOT NULL, written_users BIGINT NOT NULL""",
    "jobs.publish_lte",
    partitioned_by=("basis_id", "representation"),
)
LTE_AUDITS = Table(
    "lte_audits",
    """audited_table STRING NOT NULL, audited_date DATE NOT NULL, basis_id STRING NOT NULL,
    representation STRING NOT NULL, share DOUBLE NOT NULL, sampled_users BIGINT NOT NULL, mismatched BIGINT NOT NULL,
    missing BIGINT NOT NULL, extra BIGINT NOT NULL""",
    "jobs.audit_lte",
)
LTE_MONITORING = Table(
    "lte_monitoring",
    """snapshot_date DATE NOT NULL, basis_id STRING NOT NULL, representation STRING NOT NULL, measure STRING NOT NULL,
    value DOUBLE NOT NULL""",
    "jobs.monitor_lte",
)
ITEM_POPULARITY = Table(
    "item_popularity",
    """snapshot_date DATE NOT NULL, item_id STRING NOT NULL, events_7d INT NOT NULL, events_30d INT NOT NULL,
    events_window INT NOT NULL, events_180d INT""",
    "jobs.count_popularity",
    partitioned_by=("snapshot_date",),
)
TRAINING_SET = Table(
    "training_set",
    """training_date DATE NOT NULL, split STRING NOT NULL, snapshot_date DATE NOT NULL, user_id STRING NOT NULL,
    item_ids ARRAY<STRING> NOT NULL, event_times ARRAY<TIMESTAMP> NOT NULL, target_count INT NOT NULL,
    oldest_target_date DATE, target_item_id STRING, target_date DATE, history_count INT NOT NULL,
    lag_days INT NOT NULL, window_days INT NOT NULL, basis_id STRING NOT NULL""",
    "jobs.build_training_set",
    partitioned_by=("training_date", "split"),
    statistics=("snapshot_date",),
)
RECOMMENDATIONS = Table(
    "recommendations",
    # `item_ids` and `scores` are equally long, best first; `candidate_items` counts the items they were chosen from.
    """date DATE NOT NULL, user_id STRING NOT NULL, item_ids ARRAY<STRING> NOT NULL, scores ARRAY<FLOAT> NOT NULL,
    candidate_items INT NOT NULL, seen_items STRING NOT NULL, model_name STRING NOT NULL, model_version INT NOT NULL,
    basis_id STRING NOT NULL, representation STRING NOT NULL, lag_days INT NOT NULL, window_days INT NOT NULL""",
    "jobs.score_users",
    partitioned_by=("date",),
    statistics=("model_version",),
)
TEST_MEASUREMENTS = Table(
    "test_measurements",
    # What one day added to the sums over users, in whole numbers of 1/10,000 of the metric's unit.
    """test_name STRING NOT NULL, measured_for DATE NOT NULL, test_start DATE NOT NULL, test_end DATE NOT NULL,
    day DATE NOT NULL, variant STRING NOT NULL, metric STRING NOT NULL, users BIGINT NOT NULL,
    sum_y DECIMAL(38, 0) NOT NULL, sum_yy DECIMAL(38, 0) NOT NULL, sum_x DECIMAL(38, 0) NOT NULL,
    sum_xx DECIMAL(38, 0) NOT NULL, sum_xy DECIMAL(38, 0) NOT NULL""",
    "jobs.measure_test",
)
TEST_ACCOUNTS = Table(
    "test_accounts",
    """test_name STRING NOT NULL, measured_for DATE NOT NULL, feed STRING NOT NULL, fate STRING NOT NULL,
    rows BIGINT NOT NULL, users BIGINT NOT NULL""",
    "jobs.measure_test",
)
TABLES = {
    table.name: table
    for table in (
        EVENTS,
        ITEMS,
        QUARANTINE,
        INGESTED_DAYS,
        SEMANTIC_BASES,
        ITEM_EMBEDDINGS,
        ITEM_ENCODINGS,
        LTE_SNAPSHOTS,
        SNAPSHOT_ACCOUNTS,
        LTE_LIVE,
        PUBLICATIONS,
        LTE_AUDITS,
        LTE_MONITORING,
        ITEM_POPULARITY,
        TRAINING_SET,
        RECOMMENDATIONS,
        TEST_MEASUREMENTS,
        TEST_ACCOUNTS,
    )
}
