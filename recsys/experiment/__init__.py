"""The experiment: every arm from raw data to policy, the money, and the report.

``run_experiment`` runs what an experiment file says; ``make_report`` makes the report again from the logs alone;
``train_arm`` trains one arm's ranker.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.experiment.arms import train_arm
    from recsys.experiment.reporting import make_report
    from recsys.experiment.run import run_experiment, run_training

__all__ = ["make_report", "run_experiment", "run_training", "train_arm"]

_HOME = {"make_report": "reporting", "run_experiment": "run", "run_training": "run", "train_arm": "arms"}


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line's --help does not wait for torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"recsys.experiment.{_HOME[name]}"), name)
    raise AttributeError(name)
