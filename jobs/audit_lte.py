"""Audits a sample of users in the snapshot of `--date`, or with `--live` in `lte_live`, against the raw tables.

Plain SQL, which shares no code with the engine, recomputes the sampled users' LTEs from events, items and item vectors,
one component at a time. Only integers are compared. The sample is drawn from the users of the table and of the window,
so that missing and surplus rows are both found:

    mismatched   the row's sum, count or newest date differs from the user's events
    missing      the user has events in the window but no row
    extra        the row's user has no event in the window, or has another row

The audit covers the exact representations of the settings in each basis in force: `uniform`, and `autoencoder` with the
item vectors of the date's encoder. A representation with event weights is named and skipped.

The audit fails on any finding. The sample depends only on the user and the date: the same date audits the same users
again, and another date audits others.
"""

import datetime
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.publish_lte import newest_publication
from jobs.recipes.bases import basis_in_force
from jobs.recipes.recipe import Recipe, recipe
from jobs.spark.session import spark_session
from jobs.spark.warehouse import Warehouse, sql_date, sql_text
from lte_model.command_line import CommandParser, asked_bases, asked_representations, run
from lte_model.domain.basis import GRID
from lte_model.domain.representations import REPRESENTATIONS, UNIFORM, representation
from lte_model.domain.windows import Interval, lte_window
from lte_model.errors import LTEError
from lte_model.warehouse.tables import (
    EVENTS,
    ITEM_EMBEDDINGS,
    ITEM_ENCODINGS,
    ITEMS,
    LTE_AUDITS,
    LTE_LIVE,
    LTE_SNAPSHOTS,
)

SHARE = 0.01
SHARES = 2**20
"""The sample is a whole number of these equal shares of all users."""

FINDINGS = ("mismatched", "missing", "extra")
USERS_NAMED = 5

COMPARED = ("vector_sum", "event_count", "newest_event_date")


@dataclass(frozen=True)
class Audit:
    """What an audit found. `first` names some users; it isn't stored, because audits outlive erasures."""

    table: str
    representation: str
    date: datetime.date
    sampled_users: int
    mismatched: int
    missing: int
    extra: int
    first: tuple[str, ...]
    basis_id: str = ""

    @property
    def clean(self) -> bool:
        """Whether the audit has no finding."""
        return self.mismatched == self.missing == self.extra == 0

    def __str__(self) -> str:
        counts = ", ".join(f"{getattr(self, kind):,} {kind} ({self.rate(kind):.2%})" for kind in FINDINGS)
        lte = (
            f"{self.table}, {self.representation}{f', basis {self.basis_id}' if self.basis_id else ''}, of {self.date}"
        )
        return f"{self.sampled_users:,} users of {lte} audited: {counts}"

    def rate(self, finding: str) -> float:
        """The share of the sampled users with this finding."""
        return getattr(self, finding) / self.sampled_users


def sampled(date: datetime.date, share: float) -> Column:
    """Whether a row's user is in the sample of `date`."""
    return F.pmod(F.xxhash64("user_id", F.lit(date)), F.lit(SHARES)) < round(share * SHARES)


def recomputed(
    events: DataFrame, items: DataFrame, embeddings: DataFrame, window: Interval, date: datetime.date
) -> DataFrame:
    """(user_id, vector_sum, event_count, newest_event_date), recomputed by SQL.

    Events are dated in `window`; events and items are known before `date`. `embeddings` are those of one basis. A user
    without such events has no row.
    """
    return events.sparkSession.sql(
        f"""
        WITH components AS (
            SELECT user_id, event_date, position, CAST(component * {GRID} AS BIGINT) AS units
            FROM {{events}} AS event
            JOIN {{items}} AS item ON item.item_id = event.item_id
            JOIN {{embeddings}} AS embedding ON embedding.item_id = event.item_id
            LATERAL VIEW posexplode(vector) AS position, component
            WHERE event_date >= {sql_date(window.start)} AND event_date < {sql_date(window.end)}
              AND event.known_date < {sql_date(date)} AND item.known_date < {sql_date(date)}
        ),
        sums AS (
            SELECT user_id, position, SUM(units) AS units, COUNT(*) AS event_count, MAX(event_date) AS newest_event_date
            FROM components
            GROUP BY user_id, position
        )
        SELECT
            user_id,
            transform(array_sort(collect_list(struct(position, units))), one -> one.units) AS vector_sum,
            MAX(event_count) AS event_count,
            MAX(newest_event_date) AS newest_event_date
        FROM sums
        GROUP BY user_id
        """,  # noqa: S608 – numbers and column names of ours
        events=events,
        items=items,
        embeddings=embeddings,
    )


def compared(found: DataFrame, expected: DataFrame) -> DataFrame:
    """(user_id, finding, differing) of every user of either frame; `finding` is null where the rows are equal.

    `differing` lists the columns of a mismatch. A user's second row is extra.
    """
    differing = ", ".join(f"IF(found.{name} <=> expected.{name}, NULL, '{name}')" for name in COMPARED)
    return found.sparkSession.sql(
        f"""
        WITH pairs AS (
            SELECT user_id, is_found, is_expected, concat_ws(', ', {differing}) AS differing
            FROM (
                SELECT user_id, CAST(vector_sum AS ARRAY<BIGINT>) AS vector_sum, event_count, newest_event_date,
                       ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY newest_event_date) AS row, TRUE AS is_found
                FROM {{found}}
            ) AS found
            FULL OUTER JOIN (SELECT *, 1 AS row, TRUE AS is_expected FROM {{expected}}) AS expected
            USING (user_id, row)
        )
        SELECT
            user_id,
            differing,
            CASE
                WHEN is_expected IS NULL THEN 'extra'
                WHEN is_found IS NULL THEN 'missing'
                WHEN differing <> '' THEN 'mismatched'
            END AS finding
        FROM pairs
        """,  # noqa: S608 – numbers and column names of ours
        found=found,
        expected=expected,
    )


def item_vectors(warehouse: Warehouse, made_by: Recipe) -> DataFrame:
    """(item_id, vector): from the recipe's encoder if it has one that knows the item, else from the content."""
    of_basis = f"basis_id = {sql_text(made_by.basis_id)}"
    contents = warehouse.read(ITEM_EMBEDDINGS).where(of_basis).select("item_id", "vector")
    if made_by.encoder is None:
        return contents
    of_encoder = f"{of_basis} AND fitted_on = {sql_date(made_by.encoder.fitted_on)}"
    encodings = warehouse.read(ITEM_ENCODINGS).where(of_encoder)
    learned = encodings.select("item_id", F.col("vector").alias("learned"))
    return contents.join(learned, "item_id", "left").select("item_id", F.coalesce("learned", "vector").alias("vector"))


def require_exact(name: str) -> None:
    """Raises `LTEError` for a representation that the audit can't recompute."""
    if not representation(name).exact:
        exact = ", ".join(other.name for other in REPRESENTATIONS.values() if other.exact)
        raise LTEError(
            f"the audit covers the exact representations alone ({exact}): the events of {name} have weights, which "
            "its plain SQL doesn't know; leave it out"
        )


def audit_lte(
    warehouse: Warehouse,
    date: datetime.date,
    share: float = SHARE,
    live: bool = False,
    name: str = UNIFORM,
    basis_id: str = "",
) -> Audit:
    """Runs the job for one representation in one basis ("": that of the settings); writes counts to `lte_audits`.

    Raises `LTEError` if the representation isn't exact, the table holds no LTE of `date`, another date is live, or no
    user falls into the share.
    """
    require_exact(name)
    basis_id = basis_in_force(warehouse, basis_id)
    made_by = recipe(warehouse, basis_id, name, date)
    table = LTE_LIVE if live else LTE_SNAPSHOTS
    rows = warehouse.read(table).where(made_by.condition)
    if live:
        require_live(warehouse, basis_id, date, name)
    else:
        rows = rows.where(f"snapshot_date = {sql_date(date)}")
        if rows.isEmpty():
            raise LTEError(
                f"table {table.name} holds no {name} LTE of {date} in basis {basis_id}; "
                f"run {table.written_by} --date {date} --representation {name}"
            )

    expected = recomputed(
        warehouse.read(EVENTS).where(sampled(date, share)),
        warehouse.read(ITEMS),
        item_vectors(warehouse, made_by),
        lte_window(date, made_by.lag_days, made_by.window_days),
        date,
    )
    found = compared(rows.where(sampled(date, share)), expected)
    first = F.sort_array(F.collect_list(F.when(F.col("finding").isNotNull(), F.struct(*found.columns))))
    (row,) = found.agg(
        F.count_distinct("user_id").alias("users"),
        *[F.count_if(F.col("finding") == finding).alias(finding) for finding in FINDINGS],
        F.slice(first, 1, USERS_NAMED).alias("first"),
    ).collect()
    if not row.users:
        raise LTEError(f"no user of {table.name} of {date} falls into a share of {share:g}; give a greater --share")
    counts = {finding: row[finding] for finding in FINDINGS}
    audit = Audit(
        table.name, name, date, row.users, **counts, first=tuple(_named(*one) for one in row.first), basis_id=basis_id
    )
    record(warehouse, audit, made_by, share)
    return audit


def require_live(warehouse: Warehouse, basis_id: str, date: datetime.date, name: str) -> None:
    """Raises `LTEError` unless `date` is live: a row of `lte_live` doesn't tell the live date."""
    published = newest_publication(warehouse, basis_id, name)
    if published is None:
        raise LTEError(f"no {name} LTE of basis {basis_id} is live; run jobs.publish_lte --date {date}")
    if published.date != date:
        raise LTEError(
            f"the {name} LTE of {published.date} is live, not that of {date}; audit it with --date {published.date}, "
            f"or run jobs.publish_lte --date {date} first"
        )


def _named(user_id: str, differing: str, finding: str) -> str:
    return f"user {user_id!r} {finding}{f' in {differing}' if finding == 'mismatched' else ''}"


def record(warehouse: Warehouse, audit: Audit, made_by: Recipe, share: float) -> None:
    """Writes the counts, replacing an earlier audit of the same LTEs, table and date."""
    row = {
        "audited_table": audit.table,
        "audited_date": audit.date,
        "basis_id": made_by.basis_id,
        "representation": audit.representation,
        "share": float(share),
        "sampled_users": audit.sampled_users,
        **{finding: getattr(audit, finding) for finding in FINDINGS},
    }
    warehouse.create(LTE_AUDITS)
    frame = warehouse.spark.createDataFrame([row], warehouse.read(LTE_AUDITS).schema)
    warehouse.replace(
        LTE_AUDITS,
        frame,
        f"{made_by.condition} AND audited_table = {sql_text(audit.table)} AND audited_date = {sql_date(audit.date)}",
    )


def require_clean(audit: Audit) -> None:
    """Raises `LTEError` that names the first users if the audit has a finding."""
    if not audit.clean:
        raise LTEError(
            f"{audit}; first: {'; '.join(audit.first)}. Its rows were changed, or its events, items or vectors were "
            "after it was made: find out which, and serve and train nothing of it until then"
        )


def main() -> None:
    """Reads the command line and runs the job."""
    parser = CommandParser(__doc__, "the snapshot date; with --live the date that is live")
    parser.add_argument("--share", type=float, default=SHARE, help=f"share of the users to audit (default: {SHARE})")
    parser.add_representations("audit this representation")
    parser.add_bases("audit LTEs of this basis")
    parser.add_argument("--live", action="store_true", help="audit lte_live instead of lte_snapshots")
    arguments, settings, date = parser.read()
    if not 0 < arguments.share <= 1:
        raise LTEError(f"--share {arguments.share:g} is no share of the users; give more than 0 and at most 1")
    names = asked_representations(arguments, settings)
    for name in arguments.representations or ():
        require_exact(name)
    exact = [name for name in names if representation(name).exact]
    for name in names:
        if name not in exact:
            print(f"{name} is not audited: its events have weights, and the audit covers exact representations alone")
    if not exact:
        return
    with spark_session(settings, "audit_lte", date) as spark:
        warehouse = Warehouse(spark, settings)
        audits = [
            audit_lte(warehouse, date, arguments.share, arguments.live, name, basis_id)
            for basis_id in asked_bases(arguments, settings)
            for name in exact
        ]
    print(*audits, sep="\n")
    for audit in audits:
        require_clean(audit)


if __name__ == "__main__":
    run(main)
