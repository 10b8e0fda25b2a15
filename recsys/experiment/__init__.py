"""The experiment: every arm from raw data to policy, the money, and the report.

``run_experiment`` runs what an experiment file says; ``make_report`` makes the report again from the logs alone;
``train_arm`` trains one arm's ranker.
"""

from typing import TYPE_CHECKING

from recsys.lazy import on_first_use

if TYPE_CHECKING:
    from recsys.experiment.arms import train_arm
    from recsys.experiment.reporting import make_report
    from recsys.experiment.run import run_experiment, run_retriever, run_training

__all__ = ["make_report", "run_experiment", "run_retriever", "run_training", "train_arm"]

_HOME = {"make_report": "reporting", "run_experiment": "run", "run_retriever": "run",
         "run_training": "run", "train_arm": "arms"}
__getattr__ = on_first_use(__name__, _HOME)
