"""The training loop, its schedules, its checkpoints and how it is spread over devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recsys.config.base import Strict

SparseOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]


class ScheduleConfig(Strict):
    """A factor on a learning rate by step: linear warm-up to 1, then decay to ``final``; part of every checkpoint."""

    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_steps: int | None = Field(None, ge=1, description="steps from warm-up to ``final``; default: the whole run")
    final: float = Field(0.0, ge=0, le=1, description="factor at the end of the decay")


class TableConfig(Strict):
    """Settings of one embedding table that differ from the others'."""

    optimizer: SparseOptimizer | None = None
    lr: float | None = Field(None, gt=0)
    sharding: Literal["table_wise", "row_wise"] | None = None


class ParallelConfig(Strict):
    """How the embedding tables are spread over ranks (torchrun starts them)."""

    sharding: Literal["auto", "table_wise", "row_wise", "planner"] = Field(
        "auto", description="auto: row-wise for tables of so many rows as row_wise_from, else table-wise; "
                            "planner: TorchRec's"
    )
    row_wise_from: int = Field(100_000, ge=1)
    communication: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="precision of embeddings and their gradients between ranks"
    )
    uvm_caching: float | None = Field(
        None, gt=0, le=1, description="GPU: tables in unified memory, this share of their rows cached on the card; "
                                      "null: tables on the card"
    )
    pipeline: bool = Field(True, description="overlap the input's distribution with the step where that runs")


class TrainingConfig(Strict):
    """The loop. Validation data is cut from the training part; the test part is looked at once, at the end."""

    epochs: int = Field(1, ge=1)
    batch_size: int = Field(4096, ge=1, description="rows of a step over all ranks together")
    lanes: int | None = Field(
        None, ge=1, description="streams that the rows are dealt to; a run goes on with any number of ranks that "
                                "divides it; default: the number of ranks it was started with"
    )
    sparse_lr: float = Field(0.05, gt=0)
    dense_lr: float = Field(1e-3, gt=0)
    embedding_init: float = Field(
        0.1, gt=0, description="embedding rows start uniform within this over the root of their dimension; less holds "
                               "rare rows back"
    )
    sparse_optimizer: SparseOptimizer = Field("rowwise_adagrad", description="adam: on a GPU, or the dense backend")
    dense_optimizer: Literal["adamw", "adagrad", "sgd"] = "adamw"
    tables: dict[str, TableConfig] = Field(default_factory=dict, description="settings of single tables, by name")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, dense parameters only")
    embedding_l2: float = Field(0.0, ge=0, description="L2 of whole tables each step; dense backend only")
    sparse_schedule: ScheduleConfig = ScheduleConfig()
    dense_schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the dense gradient")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products; weights stay float32")
    compile: bool = Field(False, description="torch.compile of the dense part (needs a C++ compiler on a CPU)")
    negative_keep: float = Field(
        1.0, gt=0, le=1, description="share of the training rows without a success that are kept, by a hash of the "
                                     "row; predictions are corrected for it"
    )
    validation_share: float = Field(0.1, ge=0, lt=1)
    evaluate_steps: int = Field(0, ge=0, description="also evaluate after so many steps; 0: after each epoch only")
    patience: int = Field(0, ge=0, description="evaluations without a better validation loss before stopping; 0: never")
    shuffle_window: int = Field(1 << 18, ge=1, description="rows shuffled together")
    checkpoint_seconds: float = Field(300.0, ge=0, description="besides each epoch's end, a checkpoint so often")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept, beside the best")
    mirror: str | None = Field(
        None, description="s3://, gs:// or abfs:// address of this run's own that every checkpoint is copied to; a run "
                          "that starts without checkpoints on its disk goes on from there"
    )
    log_steps: int = Field(50, ge=1, description="steps between lines of the training log (JSONL and TensorBoard)")
    tensorboard: bool = Field(False, description="also write TensorBoard event files")
    ensemble: int = Field(1, ge=1, description="rankers trained from different seeds and averaged")
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _lanes_fit(self) -> TrainingConfig:
        if self.lanes is not None and self.batch_size % self.lanes:
            raise ValueError(f"lanes: {self.lanes} does not divide batch_size {self.batch_size}")
        return self
