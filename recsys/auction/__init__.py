"""Slots, prices, auctions, budgets: who is shown where with which probability, and what a click costs.

The simulated marketplace prices its log with these functions and evaluation builds its target
policies from them, so that both mean the same thing by a ranking, a slot and a price.

* :func:`slot_marginals`, :func:`sample_slots`: Plackett-Luce, the softmax drawn without replacement.
* :func:`slot_prices`, :func:`gsp_price`: a price per click for every (request, slot, candidate), in any order.
* :func:`run_auctions`: who wins in falling order of the score, what they pay, revenue, surplus and welfare.
* :func:`run_paced`: the same over a stream of requests under budgets.
* :func:`gsp_payments`, :func:`vcg_payments`: the textbook position auction.
"""

from recsys.auction.clearing import Cleared, run_auctions
from recsys.auction.pacing import Campaigns, run_paced
from recsys.auction.prices import MECHANISMS, Mechanism, gsp_payments, gsp_price, slot_prices, vcg_payments
from recsys.auction.slates import sample_slots, slot_marginals

__all__ = [
    "MECHANISMS", "Campaigns", "Cleared", "Mechanism", "gsp_payments", "gsp_price", "run_auctions", "run_paced",
    "sample_slots", "slot_marginals", "slot_prices", "vcg_payments",
]
