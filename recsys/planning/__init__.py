"""What a job needs and what it costs, before it is run: sizes, accelerators, hours and money, each with its reason."""

from typing import TYPE_CHECKING

from recsys.lazy import on_first_use

if TYPE_CHECKING:
    from recsys.planning.plan import make_plan

__getattr__ = on_first_use(__name__, {"make_plan": "plan"})
__all__ = ["make_plan"]
