"""Aggregation strategies by the name used in `federation.strategy`."""

from collections.abc import Callable

from flwr.serverapp.strategy import FedAvg, Strategy

from ept_fed.flower import EXAMPLES_KEY

__all__ = ["STRATEGIES", "create_strategy"]


def _fedavg(num_sites: int) -> Strategy:
    """McMahan et al. 2017: the mean of the sites' payloads, weighted by their numbers of training images."""
    return FedAvg(
        min_train_nodes=num_sites,
        min_evaluate_nodes=num_sites,
        min_available_nodes=num_sites,
        weighted_by_key=EXAMPLES_KEY,
    )


STRATEGIES: dict[str, Callable[[int], Strategy]] = {"fedavg": _fedavg}


def create_strategy(name: str, num_sites: int) -> Strategy:
    """Return the strategy for a federation of `num_sites` sites.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in STRATEGIES:
        raise ValueError(f"federation.strategy = '{name}': choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](num_sites)
