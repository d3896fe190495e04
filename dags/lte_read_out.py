"""# lte_read_out

Evaluates an online test from the shop's exposures and outcomes: the uplift of each metric with its confidence interval,
whether the variants have the intended shares of users, and how many days the test must run to detect the uplift.

**To run:** trigger it with the test's name, its first day and the day after the last day to read. The read-out is of
logical date D, by default today, and reads days before D. You may read a running test as often as you like, but decide
once, at the end that was fixed before the test.

**Before a test** trigger it with *rehearse* and past days: a hash divides all users with an outcome in two, nobody sees
anything new, and the page says how long the real test must run.

| task | what it does |
|---|---|
| measure_test | writes sums over users by variant, metric and day into `test_measurements`; no row names a user |
| check_test_measurements | checks that the sums are possible, and that every metric has two variants |
| read_out | writes the page and JSON in `<reports>/online_tests/<test>/`, and a run in MLflow |

**When it says "not readable"** the variants' shares of users differ from the intended ones (sample ratio mismatch).
One side lost users: by a redirect, a crash, a filter of robots, exposures logged late. Trust no figure until the cause
is found. If the shares weren't meant to be equal, give them.

**When it fails:** the log names the feed, the variant or the period. The feeds are `[sources] exposures` and
`outcomes` of the settings. Correct what it names and clear the task: it replaces the rows of the test and the date.
"""

from airflow.sdk import DAG, Param

from commands import DATE, OWNER, gate, job

TEST = f"--date {DATE} --test='{{{{ params.test }}}}'"
PERIOD = "--from {{ params.from }} --to {{ params.to }}{{ ' --rehearse' if params.rehearse else '' }}"
CONTROL = "--control='{{ params.control }}'"
SHARES = "{% if params.shares %} --shares='{{ params.shares }}'{% endif %}"
UPLIFT = "{% if params.uplift %} --uplift {{ params.uplift }}{% endif %}"

with DAG(
    "lte_read_out",
    description="An online test: uplift with intervals, sample ratio, and how long it must run",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "test": Param(
            type="string",
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$",
            title="Test",
            description="Its name: as in column `test` of the exposures, where they have one",
        ),
        "from": Param(type="string", format="date", title="From", description="The first day of the test, YYYY-MM-DD"),
        "to": Param(
            type="string",
            format="date",
            title="To",
            description="The day after the last day to read, YYYY-MM-DD; the run's date at most",
        ),
        "control": Param(
            "control",
            type="string",
            pattern="^[^']+$",
            title="Control",
            description="The variant that the others are compared with",
        ),
        "shares": Param(
            None,
            type=["null", "string"],
            pattern="^[^']*$",
            title="Shares",
            description="The meant shares of the variants, a=0.9,b=0.1; equal if empty",
        ),
        "uplift": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Uplift",
            description="The relative uplift to find, 0.0116 for 1.16 %; that of the settings if empty",
        ),
        "rehearse": Param(
            False,
            type="boolean",
            title="Rehearse",
            description="Before a test: divide users of past days, to see how long it must run",
        ),
    },
    default_args=OWNER,
    tags=["lte", "online test"],
    doc_md=__doc__,
):
    measure_test = job(
        "measure_test",
        f"jobs.measure_test {TEST} {PERIOD}",
        writes="test_measurements",
        on_failure="The log names the feed, the column or the variants it found. Is `To` after the run's date?",
    )
    check_test_measurements = gate(
        "check_test_measurements",
        f"jobs.quality.check test_measurements {TEST}",
        on_failure="A variant with a single user, or a metric of one variant alone? Read a longer period.",
    )
    read_out = job(
        "read_out",
        f"lte_model.online_test.read_out {TEST} {CONTROL}{SHARES}{UPLIFT}",
        writes="reports",
        on_failure="The log names the variants that there are: is `Control` one of them, and has each its share?",
    )

    measure_test >> check_test_measurements >> read_out
