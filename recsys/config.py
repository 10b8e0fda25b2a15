"""The experiment file: one YAML that says data, split, encoders, arms, model, training, evaluation and money.

``load_config(path, ["training.epochs=2"])`` gives a frozen, fully resolved :class:`ExperimentConfig`;
what is not in the file has the default written here, and the resolved whole is saved with every run.
An unknown key is an error that names the key and its nearest neighbour.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import InputError

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """Which recipe reads the data, and the simulator's parameters where the recipe is a simulation."""

    recipe: str = Field(description="name of a shipped recipe (data/NAME.yaml) or a path to one")
    home: str | None = Field(None, description="folder that holds the raw files; default RECSYS_DATA_HOME")
    simulate: dict[str, Any] = Field(default_factory=dict, description="overrides of the simulator's parameters")


class FilesSplit(Strict):
    """Train on one raw file and test on another of the same shape."""

    kind: Literal["files"]
    train: str | None = Field(None, description="path of the training file; default: the recipe's own file")
    test: str


class ShareSplit(Strict):
    """Hold out a share of the data.

    ``time``: the latest requests; ``story``: whole stories (tests that share a text belong together);
    ``user``: whole users; ``row``: rows by a hash of their id.
    """

    kind: Literal["time", "story", "user", "row"]
    test_share: float = Field(0.2, gt=0, lt=1)


SplitConfig = Annotated[FilesSplit | ShareSplit, Field(discriminator="kind")]


class EncoderConfig(Strict):
    """How an ad's text becomes a vector. ``kind`` decides which of the other keys count."""

    kind: Literal["llama", "sentence", "hashed", "length", "endpoint"]
    model: str | None = Field(
        None, description="folder, GGUF file, hub id, or a shipped name: smollm2-135m | minilm; "
                          "endpoint: the model's name on the server"
    )
    revision: str | None = None
    pooling: Literal["mean", "mean_all", "last"] = Field(
        "mean", description="mean over the text's tokens (over its last reading, where the prompt says it twice); "
                            "mean_all: over all its readings; last: the last token"
    )
    layer: int = Field(-1, description="hidden layer, counted as Python counts; -1 is the last")
    prompt: str | None = Field(None, description="template with {text}; default: the text alone")
    max_tokens: int = Field(64, ge=1, le=8192)
    batch_tokens: int | None = Field(
        None, ge=1, description="padded tokens a batch; default 512 on a CPU (they stay in its cache), 16384 on a GPU"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    dim: int = Field(1024, ge=8, le=1 << 20, description="hashed: number of buckets; endpoint: length of its vectors")
    ngrams: tuple[int, int] = Field((1, 2), description="hashed: shortest and longest word n-gram")
    characters: tuple[int, int] | None = Field(
        None, description="hashed: also character n-grams inside words, of these lengths; half of the buckets each"
    )
    url: str | None = Field(None, description="endpoint: base URL of an OpenAI-compatible server, ending in /v1")
    key_env: str | None = Field(None, description="endpoint: environment variable that holds the key; null: no key")
    price: str | None = Field(None, description="endpoint: the price card's row for a million tokens")
    batch_size: int = Field(64, ge=1, le=2048, description="endpoint: texts a request")
    concurrency: int = Field(4, ge=1, le=64, description="endpoint: requests at a time")
    retries: int = Field(6, ge=0, description="endpoint: further tries of a request that may yet succeed")
    backoff_seconds: float = Field(1.0, gt=0, description="endpoint: pause before the second try; doubles each time")
    timeout_seconds: float = Field(60.0, gt=0, description="endpoint: longest silence of the server")


class SemanticIdConfig(Strict):
    """Codes of a residual quantiser over the arm's content vectors; their prefixes become sparse features."""

    levels: int = Field(3, ge=1, le=8)
    codebook: int = Field(64, ge=2, le=1 << 16, description="entries of each level's codebook; a power of two")
    dim: int = Field(64, ge=1, description="principal components that are quantised")

    @model_validator(mode="after")
    def _power_of_two(self) -> SemanticIdConfig:
        if self.codebook & (self.codebook - 1):
            raise ValueError(f"codebook: a power of two, not {self.codebook}")
        return self


class ArmConfig(Strict):
    """One arm of the experiment: a ranker with or without a content encoder, or a fixed policy."""

    content: str | tuple[str, ...] | None = Field(
        None, description="an encoder, or several whose vectors are joined; null: ids and dense features only"
    )
    semantic_ids: SemanticIdConfig | None = Field(
        None, description="also feed the ranker (dlrm) semantic ids of the content, for ads that training never saw"
    )
    policy: Literal["ranker", "uniform"] = "ranker"

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the arm's encoders, none for ids only."""
        return (self.content,) if isinstance(self.content, str) else self.content or ()


class ModelConfig(Strict):
    """The ranker. ``dlrm`` for user-ad logs, ``ridge`` for tests among texts shown to everybody."""

    kind: Literal["dlrm", "ridge"] = "dlrm"
    embedding_dim: int = Field(16, ge=4, multiple_of=4, description="the fused kernels need a multiple of 4")
    embeddings: Literal["fused", "dense"] = Field("fused", description="embedding backend on one device")
    hash_buckets: int = Field(100_000, ge=2, description="rows of the table of a hashed sparse feature")
    min_count: int = Field(2, ge=1, description="vocabulary: ids seen less often share one out-of-vocabulary row")
    bottom: tuple[int, ...] = (64, 16)
    top: tuple[int, ...] = (128, 64)
    dropout: float = Field(0.0, ge=0, lt=1)
    content_dim: int = Field(64, ge=1, description="principal components kept of a content vector")
    heads: tuple[Literal["click", "engage", "convert"], ...] = ("click",)
    penalties: tuple[float, ...] = Field(
        (30.0, 100.0, 300.0, 1e3),
        description="ridge: tried by cross-validation on training stories",
    )


class TrainingConfig(Strict):
    """The loop. Validation data is cut from the training part; the test part is looked at once, at the end."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(4096, ge=1)
    sparse_lr: float = Field(0.05, gt=0)
    dense_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="decoupled, dense parameters only")
    validation_share: float = Field(0.1, ge=0, lt=1)
    patience: int = Field(0, ge=0, description="epochs without a better validation loss before stopping; 0: never")
    shuffle_window: int = Field(1 << 18, ge=1, description="rows shuffled together")
    checkpoint_seconds: float = Field(300.0, ge=0, description="besides each epoch's end, a checkpoint so often")
    ensemble: int = Field(1, ge=1, description="rankers trained from different seeds and averaged")


class PolicyConfig(Strict):
    """How a ranker's scores become a policy: softmax of (log p_click + bid_exponent * log bid) / temperature."""

    temperature: float = Field(0.25, gt=0)
    bid_exponent: float = Field(0.5, ge=0, description="squashing of the bid in the ranking score")
    reserve: float = Field(0.05, ge=0, description="lowest price of a click, in the log's currency")
    mechanism: Literal["gsp", "vcg", "first_price"] = Field("gsp", description="how a click is priced")


class EvaluationConfig(Strict):
    """What is measured, fixed before results exist."""

    goal: Literal["ctr"] = "ctr"
    method: Literal["offpolicy", "randomized"] = "offpolicy"
    unit: Literal["user_id", "group_id", "request_id"] = "user_id"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(2000, ge=200)
    policy: PolicyConfig = PolicyConfig()


class GuardrailConfig(Strict):
    """A metric that an arm must not harm, whatever it does for the goal."""

    metric: Literal["engagement", "hide", "revenue_per_mille", "surplus_per_mille", "welfare_per_mille",
                    "cost_per_click", "latency_ms"]
    better: Literal["higher", "lower"] = Field(description="the direction that is good")
    tolerated: float = Field(0.0, ge=0, lt=1, description="harm put up with, a share of the baseline's value")
    limit: float | None = Field(None, gt=0, description="a bound on the value itself; what latency_ms is held to")

    @model_validator(mode="after")
    def _latency_has_a_limit(self) -> GuardrailConfig:
        if (self.metric == "latency_ms") != (self.limit is not None):
            raise ValueError("a limit for latency_ms, and for no other metric: it is one measurement, without interval")
        return self


class DecisionConfig(Strict):
    """The rule by which arms are judged, fixed before results exist (docs/money.md). Its hash is on the report."""

    goal: Literal["ctr"] | None = Field(None, description="default: evaluation.goal, and never another")
    confidence: float | None = Field(None, gt=0.5, lt=1, description="default: evaluation.confidence, never another")
    minimum_effect: float = Field(0.0, ge=0, lt=1, description="smallest relative lift that is worth shipping")
    guardrails: tuple[GuardrailConfig, ...] = ()
    multiplicity: Literal["none", "holm", "bh"] = Field("holm", description="adjustment of the goal over arms")
    peeking: Literal["fixed", "always_valid"] = "fixed"
    looks: int = Field(1, ge=1, description="fixed: how many looks at growing data are planned; alpha is split evenly")
    tuning: float = Field(5_000.0, gt=0, description="always_valid: units at which the interval is tightest")

    @model_validator(mode="after")
    def _each_once(self) -> DecisionConfig:
        names = [g.metric for g in self.guardrails]
        if len(names) != len(set(names)):
            raise ValueError(f"every guardrail metric once, not {sorted(names)}")
        return self


class MoneyConfig(Strict):
    """Which prices apply and over how many impressions a one-off cost is spread."""

    price_card: str = Field("2026-11", description="name of a card in data/prices/ or a path to one")
    machine: str = Field("aws-c6a-large", description="the card's row for the machine the stages ran on")
    storage: str | None = Field(None, description="the card's row for what is kept between two refreshes; default: "
                                                  "the storage of the machine's provider, where the card has one")
    impressions_per_refresh: int = Field(1_000_000, ge=1, description="impressions served between two refreshes")
    months_per_refresh: float = Field(1.0, gt=0, description="how long vectors, index and model are kept")
    reference_ecpm: float = Field(2.0, gt=0, description="USD per mille assumed where no revenue was measured")
    price_decline_per_year: float = Field(
        0.25, gt=0, lt=1, description="assumed fall of compute prices, for the months to break-even (docs/money.md)"
    )


class IndexConfig(Strict):
    """Which FAISS index holds the content vectors, and the recall that it is tuned to."""

    recall: float = Field(0.95, gt=0, le=1, description="recall@k against exact search that the index is tuned to")
    k: int = Field(100, ge=1, description="neighbours that recall counts")
    queries: int = Field(256, ge=1, description="the corpus's own vectors to tune on, and as many more to measure on")
    factory: str | None = Field(None, description="FAISS factory string; default: by the number of ads")
    flat_up_to: int = Field(50_000, ge=0, description="most ads of an exact index (Flat)")
    ivf_up_to: int = Field(1_000_000, ge=0, description="most ads of IVF...,SQ8")
    hnsw_up_to: int = Field(10_000_000, ge=0, description="most ads of IVF..._HNSW32,SQ8; beyond: PQ with refinement")


class ExperimentConfig(Strict):
    """The whole experiment file."""

    name: str
    seed: int = 0
    data: DataConfig
    split: SplitConfig
    encoders: dict[str, EncoderConfig] = Field(default_factory=dict)
    arms: dict[str, ArmConfig] = Field(default_factory=lambda: {"ids_only": ArmConfig()})
    baseline: str | None = Field(None, description="the arm that lifts are measured against; default: the first")
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    index: IndexConfig = IndexConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decision: DecisionConfig = DecisionConfig()
    money: MoneyConfig = MoneyConfig()

    @model_validator(mode="after")
    def _names_exist(self) -> ExperimentConfig:
        if not self.arms:
            raise ValueError("arms: at least one arm is needed")
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline!r} is not one of the arms {sorted(self.arms)}")
        for name, arm in self.arms.items():
            for content in arm.encoders:
                if content not in self.encoders:
                    known = sorted(self.encoders)
                    raise ValueError(f"arms.{name}.content: {content!r} is not one of the encoders {known}")
            if arm.semantic_ids is not None and (self.model.kind != "dlrm" or not arm.encoders):
                raise ValueError(f"arms.{name}.semantic_ids: content to make them of, and model.kind dlrm to use them")
        for key in ("goal", "confidence"):
            wanted, measured = getattr(self.decision, key), getattr(self.evaluation, key)
            if wanted is not None and wanted != measured:
                raise ValueError(f"decision.{key} is {wanted!r} but evaluation.{key} is {measured!r}: one of the two")
        return self

    @property
    def baseline_arm(self) -> str:
        """Name of the arm that lifts are measured against."""
        return self.baseline or next(iter(self.arms))

    def resolved(self) -> dict[str, Any]:
        """The configuration with every default filled in, as plain JSON-able values."""
        return self.model_dump(mode="json")


def find_resource(kind: Literal["data", "experiments"], name: str, beside: Path | None = None) -> Path:
    """Find a recipe, price card or experiment file by path or by shipped name.

    Looked for, in this order: the path as given (relative to the working folder, then to ``beside``),
    then ``name`` with and without ``.yaml`` among the files shipped with the package.

    Raises:
        InputError: nothing of that name; the shipped names are listed.
    """
    for base in (Path(), beside):
        if base is not None and (base / name).is_file():
            return base / name
    shipped = Path(str(resources.files("recsys." + kind)))
    for candidate in (shipped / name, shipped / f"{name}.yaml", shipped / Path(name).name):
        if candidate.is_file():
            return candidate
    folder = shipped if Path(name).is_absolute() else (shipped / name).parent
    names = sorted(p.stem for p in (folder if folder.is_dir() else shipped).glob("*.yaml"))
    raise InputError("no such file", file=name, expected=f"a path, or one of {names}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing, empty or malformed file is one clear error."""
    if not path.is_file():
        raise InputError("no such file", file=path, expected="a YAML file")
    try:
        value = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError("not valid YAML", file=path, row=None if mark is None else mark.line,
                         got=getattr(error, "problem", str(error))) from None
    if not isinstance(value, dict):
        raise InputError("not a mapping", file=path, got=type(value).__name__, expected="key: value lines")
    return value


def apply_overrides(value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` overrides (values are read as YAML) to a nested mapping, in place."""
    for item in overrides:
        path, sep, text = item.partition("=")
        if not sep or not path.strip():
            raise InputError("malformed override", file="--set", got=item, expected="a.b=value")
        keys, at = path.strip().split("."), value
        for key in keys[:-1]:
            inner = at.get(key)
            if inner is None:
                inner = at[key] = {}
            if not isinstance(inner, dict):
                raise InputError("not a section", file="--set", column=path, got=inner, expected="a mapping")
            at = inner
        try:
            at[keys[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError("malformed value", file="--set", column=path, got=text, expected="a YAML value") from None
    return value


def parse_model(model: type[M], value: dict[str, Any], file: str | Path) -> M:
    """Validate a mapping against a pydantic model; the first problem becomes one :class:`InputError`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(str(p) for p in first["loc"]) or None
        expected = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = _known_keys(model)
            near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
            expected = f"a known key (did you mean {near[0]!r}?)" if near else "a known key"
            raise InputError("unknown key", file=file, column=column, got=first["loc"][-1], expected=expected) from None
        if first["type"] == "missing":
            raise InputError("missing key", file=file, column=column, expected="a value") from None
        got = None if isinstance(first["input"], dict) else first["input"]
        raise InputError("bad value", file=file, column=column, got=got, expected=expected) from None


def _known_keys(model: type[BaseModel]) -> list[str]:
    return sorted(_walk_keys(model.model_json_schema()))


def _walk_keys(schema: Any) -> set[str]:
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", {}))
        for inner in schema.values():
            found |= _walk_keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            found |= _walk_keys(inner)
    return found


def load_config(path: str | Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """Read, override and validate an experiment file.

    Args:
        path: a path, or the name of a shipped experiment.
        overrides: ``a.b=c`` strings.

    Raises:
        InputError: missing file, malformed YAML, unknown key, wrong value.
    """
    file = find_resource("experiments", str(path))
    value = _beside(read_yaml(file), file.parent)
    return parse_model(ExperimentConfig, apply_overrides(value, overrides or []), file)


def _beside(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make paths that are written relative to the experiment file absolute; what is not found there stays as it is."""
    for section, keys in (("split", ("train", "test")), ("data", ("recipe",)), ("money", ("price_card",))):
        inner = value.get(section)
        if not isinstance(inner, dict):
            continue
        for key in keys:
            given = inner.get(key)
            if isinstance(given, str) and not Path(given).exists() and (folder / given).is_file():
                inner[key] = str((folder / given).resolve())
    return value
