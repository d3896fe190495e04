"""The settings of one installation: one typed object, read from one TOML file, then from the environment.

Longer than 350 lines, because all settings stand in one file.

`LTE_WINDOW__LAG_DAYS=14` overrides `lag_days` in the table `[window]`. Relative paths start at `home`, and
`home` starts at the folder of the file. An unknown key, in the file or the environment, is an error.
"""

import datetime
import math
import os
import tomllib
import urllib.parse
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from lte_model import object_store
from lte_model.domain.representations import require_distinct
from lte_model.domain.windows import Interval, TrainingDates
from lte_model.errors import LTEError

PREFIX = "LTE_"
SETTINGS_VARIABLE = "LTE_SETTINGS"
"""The variable that names the settings file if the command line doesn't. It isn't a setting itself."""

Days = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sources(_Section):
    """Where the shop's feeds lie: a path, any Hadoop URL, or `table:name` for a table of the catalogue.

    Only online tests read `exposures` and `outcomes`.
    """

    events: str = "source/events.parquet"
    items: str = "source/items.parquet"
    exposures: str = "source/exposures.parquet"
    outcomes: str = "source/outcomes.parquet"


class Window(_Section):
    """What the LTE of a snapshot date D averages: events dated in [D−L−W, D−L)."""

    lag_days: Days = 30
    window_days: Days = 365


class Basis(_Section):
    """The semantic basis of the trainings, and how the next one is fitted.

    `basis_id` is the basis that models are trained in; empty means the only registered one. While a new basis replaces
    an old one, `beside` names the other bases in force: their items are embedded, and their LTEs made, measured,
    published and pushed each day too, for the models that read them. `encoder`, `dimensions` and `text_template` apply
    to the next basis; table `semantic_bases` has those of the registered ones.
    """

    basis_id: str = ""
    beside: tuple[str, ...] = ()
    encoder: Literal["hashed-text"] = "hashed-text"
    dimensions: Count = 64
    text_template: str = "{title} {brand} {category} {description}"

    @property
    def in_force(self) -> tuple[str, ...]:
        """Every basis in force, `basis_id` first; "" means the only registered basis."""
        return (self.basis_id, *self.beside)

    @model_validator(mode="after")
    def _each_named_once(self) -> Self:
        if self.beside and not all(self.in_force):
            raise ValueError("with bases beside it, basis_id must name the one that models are trained in")
        if len({*self.in_force}) < len(self.in_force):
            raise ValueError(f"a basis is named twice among basis_id and beside: {', '.join(self.in_force)}")
        return self


class TrainingSetSettings(_Section):
    """Which dates train and which evaluate. With `anchor_every_days` = `lag_days`, each target is used once."""

    anchors: Count = 6
    anchor_every_days: Days = 30
    test_days: Days = 30
    max_length: Count = 200
    """The most events of a row; no policy or model reads more."""
    user_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of users that train and evaluate: a training holds all their rows in memory (infra/scale.md)."""

    def dates(self, training_date: datetime.date) -> TrainingDates:
        """The dates of the training on `training_date`, which only sees earlier events.

        The last `test_days` days are the test, the `test_days` before them the validation. The anchors step back from
        the validation cut, `anchor_every_days` apart.
        """
        horizon = datetime.timedelta(days=self.test_days)
        test = Interval(training_date - horizon, training_date)
        validation = Interval(test.start - horizon, test.start)
        step = datetime.timedelta(days=self.anchor_every_days)
        return TrainingDates(
            anchors=tuple(validation.start - step * k for k in reversed(range(self.anchors))),
            validation=validation,
            test=test,
        )


class Model(_Section):
    """What the model reads, and the sizes of the transformer.

    `sequence` is the policy: `lagged` reads the events of [D−L, D); `newest` reads the newest events before D, where
    those before D−L are inputs and never targets. `max_tokens` includes one context token per representation.
    `representations` are names of lte_model/domain/representations.py.
    """

    integration: Literal["prefix", "none", "late_fusion", "feature_injection"] = "prefix"
    representations: Annotated[tuple[str, ...], Field(min_length=1)] = ("uniform",)
    sequence: Literal["lagged", "newest"] = "lagged"
    max_tokens: Annotated[int, Field(ge=2)] = 50
    long_memory: Literal["none", "linear_attention"] = "none"
    """The layer that reads the `memory_events` events before the sequence."""
    memory_events: Count = 150
    popularity_bias: bool = False
    time_features: bool = False
    repeat_bias: bool = False
    """A learned bias for items of the user's own history, by how many events ago."""
    width: Count = 64
    blocks: Count = 2
    heads: Count = 2
    feed_forward: Count = 1
    """The hidden width of the feed-forward layers, in multiples of `width`. SASRec has 1, language models 4."""
    dropout: Share = 0.3
    id_embedding: bool = True
    id_dropout: Share = 0.1
    """The probability that training drops an item's own vector, so that its content learns to represent it."""

    @field_validator("representations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            require_distinct(names)
        except LTEError as error:  # pydantic adds the key to a ValueError
            raise ValueError(str(error)) from None
        return names


class Representations(_Section):
    """The parameters of those representations that have any."""

    half_life_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 90.0
    """For `recency`: the days after which an event weighs half as much."""


class Autoencoder(_Section):
    """How the encoder of a date is fitted: on at most `anchors` anchors, one lag apart, and at most `users` users.

    `inertia` weighs an added loss: 1 − cosine between an LTE and that of the week before.
    """

    anchors: Count = 12
    users: Count = 200_000
    epochs: Count = 40
    patience: Count = 3
    batch_size: Count = 256
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    event_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    inertia: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0


class Training(_Section):
    """How the weights are trained.

    Up to `exact_items` candidates the softmax is exact. Beyond, it uses `sampled_items` of them, drawn in proportion to
    their number of targets to the power of `sampling_power`.
    """

    epochs: Count = 30
    patience: Count = 4
    batch_size: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The decay per step of the weights' moving average, which is evaluated and saved; 0 takes the last weights."""
    seed: int = 0
    refit: bool = False
    """Whether to train once more up to the test cut, for the number of epochs that the validation chose."""
    loss_positions: Literal["all", "last"] = "all"
    predict_from: Literal["earlier_events", "earlier_days"] = "earlier_events"
    """What a target is predicted from: all events before it, including those of its day and basket; or only the events
    of earlier days, as for a list that is made once a day. `earlier_days` is better with `popularity_bias` and
    `time_features` of `model`, and worse without (lte_model/studies/RESULTS.md)."""
    exact_items: Count = 100_000
    sampled_items: Count = 8192
    sampling_power: Share = 0.75
    sampling_correction: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type of matrix products; auto is bfloat16 on a GPU and float32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile compiles the transformer's blocks; auto does so only on a GPU."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 keeps torch's default."""


class EvaluationSettings(_Section):
    """The cut-offs k of NDCG@k, and the bootstrap samples of the confidence intervals."""

    cutoffs: tuple[Count, ...] = (10, 100, 500)
    bootstrap_samples: Count = 1000

    @property
    def headline(self) -> str:
        """The metric that decides: NDCG at the largest cut-off, `ndcg@500` by default."""
        return f"ndcg@{max(self.cutoffs)}"


class Scoring(_Section):
    """What table `recommendations` holds for each user: the `k` best items.

    `seen_items` = `keep` ranks items of the user's history like all others. `drop` leaves out every item of the user's
    events in the LTE's window and in the days between it and the date.
    """

    k: Count = 100
    seen_items: Literal["keep", "drop"] = "keep"


class OnlineTest(_Section):
    """How an online test is measured. The first of `metrics` decides; each is a column of the outcomes feed."""

    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("engagement", "revenue")
    uplift: Annotated[float, Field(gt=0)] = 0.0116
    """The relative difference that a test should detect with probability `power`. The default is the paper's."""
    power: Annotated[float, Field(gt=0.05, lt=1)] = 0.8
    sample_ratio_p: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """Below this p-value the users are not divided as planned, and the test isn't readable."""


class MLflow(_Section):
    """MLflow's server, file or database.

    A `tracking_uri` with a password belongs in the environment, as LTE_MLFLOW__TRACKING_URI; the login of a server
    belongs in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """

    tracking_uri: Annotated[str, Field(repr=False)] = "sqlite:///mlflow.db"
    artifacts: str = "mlartifacts"
    experiment: str = "lte"
    model_name: Annotated[str, Field(pattern=r"""^[^/:'"]+$""")] = "lte-ranker"
    """MLflow allows no / and no : in a name, and can't search for a quote."""

    @property
    def place(self) -> str:
        """`tracking_uri` without its login, for messages."""
        place = urllib.parse.urlsplit(self.tracking_uri).netloc
        return self.tracking_uri.replace(place, place.rpartition("@")[2])


class S3(_Section):
    """The address of the `s3://` store, such as `https://s3.example.org`, and its region.

    If empty, AWS_ENDPOINT_URL and AWS_REGION decide, or AWS's defaults. Credentials are not settings: they come from
    AWS's variables or the machine's role.
    """

    endpoint: str = ""
    region: str = ""


class OnlineStoreSettings(_Section):
    """Where a service reads the live LTEs; `none` means nowhere.

    `sqlite` is the file `path`. `redis` is at `connection`, `host:port,password=…,ssl=true`: a secret belongs in the
    environment, as LTE_ONLINE_STORE__CONNECTION. `registry` is the path or URL of Feast's registry, and `python` the
    Python of the environment with Feast.
    """

    type: Literal["none", "sqlite", "redis"] = "none"
    path: str = "online_store/ltes.db"
    connection: Annotated[str, Field(repr=False)] = "localhost:6379"
    registry: str = "online_store/registry.db"
    python: str = ""


class Gates(_Section):
    """Thresholds that stop a day's feed or a model's promotion.

    `max_quarantined_share` and `max_unknown_item_share` limit the shares of a day's rows that are refused or name an
    unknown item. To be promoted, a model needs an LTE for `min_lte_coverage` of its test users. If its basis isn't the
    champion's, `min_basis_coverage` of the users with a live LTE in the champion's basis need one in the model's basis.
    """

    max_quarantined_share: Share = 0.05
    max_unknown_item_share: Share = 0.05
    min_lte_coverage: Share = 0.1
    min_basis_coverage: Share = 0.98


class Bounds(_Section):
    """The range of a measure: beyond `warn_…` the log names its value, beyond `stop_…` nothing goes live.

    Bounds are inclusive; ±inf disables one.
    """

    stop_below: float = -math.inf
    warn_below: float = -math.inf
    warn_above: float = math.inf
    stop_above: float = math.inf

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.stop_below <= self.warn_below <= self.warn_above <= self.stop_above:
            raise ValueError(
                "bounds must ascend: stop_below, warn_below, warn_above, stop_above; -inf and inf are none"
            )
        return self


class Monitoring(_Section):
    """The bounds of a snapshot's measures before it goes live; lte_model/monitoring/measures.py describes the measures.

    A default stop means that something is broken, whatever the shop; good warnings differ by shop.
    `[monitoring.inertia] warn_below = 0.95` changes that bound and keeps the measure's other bounds.
    """

    sampled_users: Count = 200_000
    """The users that are compared with other dates and looked up in the events, or all of a smaller snapshot. Three
    times their vectors are in memory at once."""

    users: Bounds = Bounds()
    users_change: Bounds = Bounds(stop_below=-0.3, warn_below=-0.1, warn_above=0.3)
    without_lte: Bounds = Bounds(warn_above=0.7, stop_above=0.95)
    missing: Bounds = Bounds(warn_above=0.02, stop_above=0.1)
    coverage: Bounds = Bounds(stop_below=0.05, warn_below=0.2)
    inertia: Bounds = Bounds(stop_below=0.5, warn_below=0.9)
    moved_per_day: Bounds = Bounds(warn_above=0.01, stop_above=0.05)
    inertia_days: Bounds = Bounds()
    mean_shift: Bounds = Bounds(warn_above=0.05, stop_above=0.2)
    psi_norm: Bounds = Bounds(warn_above=0.25)
    psi_events: Bounds = Bounds(warn_above=0.25, stop_above=1)
    psi_age: Bounds = Bounds(warn_above=0.25)
    """`psi_age` and `psi_norm` have no stop: ages grow in a shop's first year, and a new encoder has other norms."""
    reference_days: Bounds = Bounds()
    age_mean: Bounds = Bounds()
    age_p50: Bounds = Bounds()
    age_p95: Bounds = Bounds()
    days_without_events: Bounds = Bounds(warn_above=2, stop_above=14)
    events_mean: Bounds = Bounds()
    norm_mean: Bounds = Bounds()
    null_rows: Bounds = Bounds(warn_above=0, stop_above=0)
    off_grid_rows: Bounds = Bounds(warn_above=0, stop_above=0)
    long_rows: Bounds = Bounds(warn_above=0, stop_above=0)
    zero_share: Bounds = Bounds(warn_above=0.0001, stop_above=0.01)

    @field_validator("*", mode="before")
    @classmethod
    def _over_the_default(cls, given: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        return default.model_dump() | given if isinstance(default, Bounds) and isinstance(given, dict) else given


class Freshness(_Section):
    """When live LTEs are stale: their date is more than `max_age_days` before today.

    `missed_days` is how many days back a day without a snapshot is reported.
    """

    max_age_days: Annotated[int, Field(ge=0)] = 0
    missed_days: Annotated[int, Field(ge=0)] = 7


class Maintenance(_Section):
    """What the weekly maintenance keeps and compacts.

    It keeps every snapshot of the last `daily_snapshots_days`, older ones if a training reads them, and the
    recommendations of the last `recommendations_days`. It keeps a file for `retention_days` after the current versions
    stop needing it, and longer if a registered model names its version. A partition with more than `small_files` files
    below `small_file_mb` is rewritten in files of about `target_file_mb`.
    """

    daily_snapshots_days: Days = 30
    recommendations_days: Days = 30
    retention_days: Days = 30
    small_files: Count = 4
    small_file_mb: Count = 16
    target_file_mb: Count = 128


class Spark(_Section):
    """The Spark session. `conf` goes to Spark unchanged.

    `jars` is a folder of jars for the class path; a cluster gets them from the driver.
    """

    master: str = "local[*]"
    jars: str = ""
    packages: tuple[str, ...] = ("io.delta:delta-spark_4.2_2.13:4.4.0",)
    class_data_archive: str = ""
    conf: dict[str, str | int | float | bool] = {}


class Settings(_Section):
    """Everything that differs between installations. Every path in it is absolute or a URL.

    `warehouse`, `sources` and `mlflow.artifacts` may be URLs, such as `s3://bucket/folder`. `checkpoints`, `reports`
    and `data_docs` must be on a disk that all machines share that write there: trainings resume from their checkpoints,
    and pages are replaced.
    """

    home: str = "."
    warehouse: str = "warehouse"
    checkpoints: str = "checkpoints"
    reports: str = "reports"
    data_docs: str = "data_docs"
    sources: Sources = Sources()
    window: Window = Window()
    basis: Basis = Basis()
    representations: Representations = Representations()
    training_set: TrainingSetSettings = TrainingSetSettings()
    model: Model = Model()
    autoencoder: Autoencoder = Autoencoder()
    training: Training = Training()
    evaluation: EvaluationSettings = EvaluationSettings()
    scoring: Scoring = Scoring()
    online_test: OnlineTest = OnlineTest()
    mlflow: MLflow = MLflow()
    s3: S3 = S3()
    online_store: OnlineStoreSettings = OnlineStoreSettings()
    gates: Gates = Gates()
    monitoring: Monitoring = Monitoring()
    freshness: Freshness = Freshness()
    maintenance: Maintenance = Maintenance()
    spark: Spark = Spark()

    @field_validator("warehouse")
    @classmethod
    def _plain(cls, place: str) -> str:
        if "://" in place and urllib.parse.quote(place, safe=":/") != place:
            raise ValueError("use only letters, digits and -._~/ in a URL: some readers fail on others")
        return place

    @field_validator("home", "checkpoints", "reports", "data_docs")
    @classmethod
    def _on_a_disk(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("it must lie on a disk; give a folder")
        return folder

    def table_path(self, table: str) -> str:
        """Where the Delta table called `table` lies."""
        return f"{self.warehouse}/{table}"


def load_settings(path: str | os.PathLike | None = None) -> Settings:
    """Reads the settings from `path`, or from the file that LTE_SETTINGS names, and from the environment.

    Exports `[s3]` to the environment, where all readers of S3 look. Raises `LTEError` for a file that is missing or not
    TOML, an unknown key and an invalid value.
    """
    file = Path(path or os.environ.get(SETTINGS_VARIABLE, ""))
    if not file.is_file():
        raise LTEError(f"there is no settings file {str(file)!r}; give --settings or set {SETTINGS_VARIABLE}")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LTEError(f"settings file {file} is not TOML: {error}") from None
    _override(values, os.environ)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise LTEError(f"settings file {file}: {_first_problem(error)}") from None
    object_store.require_no_secret(settings.spark.conf, f"settings file {file}: spark.conf")
    object_store.announce(settings.s3.endpoint, settings.s3.region)
    return _with_absolute_paths(settings, file.resolve().parent)


def with_make(settings: Settings, dimensions: int | None, text_template: str | None) -> Settings:
    """The settings with other `dimensions` or another `text_template` for the next basis, where given.

    Raises `LTEError` for dimensions below 1.
    """
    if dimensions is not None and dimensions < 1:
        raise LTEError(f"--dimensions {dimensions} are none; give 1 or more")
    given = {"dimensions": dimensions, "text_template": text_template or None}
    make = settings.basis.model_copy(update={name: value for name, value in given.items() if value is not None})
    return settings.model_copy(update={"basis": make})


def _override(values: dict[str, Any], environment: "os._Environ[str] | dict[str, str]") -> None:
    for name, text in sorted(environment.items()):
        if not name.startswith(PREFIX) or name == SETTINGS_VARIABLE:
            continue
        *sections, key = name.removeprefix(PREFIX).lower().split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = text


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its name (keys: lte_model/settings.py)"
    if problem["type"] == "model_type":  # the value, given instead of a table, may be a secret
        return f"{key}: {problem['msg'].lower()}"
    return f"{key} = {problem['input']!r}: {problem['msg'].lower()}"


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    home = (folder / settings.home).resolve()

    def absolute(path: str) -> str:
        return object_store.one_spelling(path) if ":" in path or not path else os.path.normpath(home / path)

    uri = settings.mlflow.tracking_uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{home / uri.removeprefix('sqlite:///')}"
    return settings.model_copy(
        update={
            "home": str(home),
            **{
                name: absolute(getattr(settings, name)) for name in ("warehouse", "checkpoints", "reports", "data_docs")
            },
            "sources": Sources(**{feed: absolute(source) for feed, source in settings.sources}),
            "mlflow": settings.mlflow.model_copy(
                update={"tracking_uri": uri, "artifacts": absolute(settings.mlflow.artifacts)}
            ),
            "online_store": settings.online_store.model_copy(
                update={name: absolute(getattr(settings.online_store, name)) for name in ("path", "registry", "python")}
            ),
            "spark": settings.spark.model_copy(
                update={
                    "jars": absolute(settings.spark.jars),
                    "class_data_archive": absolute(settings.spark.class_data_archive),
                }
            ),
        }
    )
