"""Aggregators by their name in `federation.strategy`: Flower's strategies where they exist, else our own.

Flower's strategies do the arithmetic behind our `Aggregator`. Each call makes new messages for them, because some of
them consume the messages that they average.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.protocol.layout import Vector
from ept_fed.run_plan.plan import Plan
from server.strategies.aggregation_rules import fednova, geometric_median, log_mean_exp, site_weights
from server.strategies.base import Aggregator, Update, count_examples, stack_payloads
from server.strategies.central_dp import NoisyMean
from server.strategies.control_variates import FedDyn, Scaffold

__all__ = ["AGGREGATORS", "FlowerAggregator", "create_aggregator"]

_ARRAYS, _CONFIG, _METRICS, _WEIGHT, _LOSS = "arrays", "config", "metrics", "weight", "loss"


class FlowerAggregator(Aggregator):
    """An adapter from one of Flower's strategies to our interface.

    Args:
        strategy: any `flwr.serverapp.strategy.Strategy` that averages ArrayRecords.
        memory: names of the strategy's attributes that must be kept between rounds (dicts or lists of arrays).
        weigh: a function from sample counts (S,) to weights (S,).
    """

    def __init__(
        self, strategy: flower.Strategy, *, memory: Sequence[str], weigh: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self._strategy, self._memory, self._weigh = strategy, tuple(memory), weigh

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Run the strategy's public hooks on new messages, and return the result as float32."""
        weights = self._weigh(count_examples(updates))
        grid = cast(Grid, _Nodes(len(updates)))
        requests = sorted(
            self._strategy.configure_train(round_number, _as_record(payload), ConfigRecord(), grid),
            key=lambda request: request.metadata.dst_node_id,
        )
        replies = [
            _as_reply(request, update, float(weight))
            for request, update, weight in zip(requests, updates, weights, strict=True)
        ]
        arrays, _ = self._strategy.aggregate_train(round_number, replies)
        if arrays is None:
            return payload
        (array,) = arrays.values()
        return np.ascontiguousarray(array.numpy(), dtype=np.float32)

    def state(self) -> dict[str, Vector]:
        """Return the moments or the momentum, flattened; the result is empty before the first round."""
        state = {}
        for name in self._memory:
            value = getattr(self._strategy, name)
            if value is not None:
                (array,) = value.values() if isinstance(value, dict) else value
                state[name] = np.asarray(array)
        return state

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Set the strategy's attributes; see `Aggregator.load_state`."""
        unknown = set(state) - set(self._memory)
        if unknown:
            raise ValueError(f"{type(self._strategy).__name__} has no state {sorted(unknown)}")
        if hasattr(self._strategy, "current_arrays"):
            self._strategy.current_arrays = _as_record(payload)
        (key,) = _as_record(payload)
        for name in self._memory:
            held: Any = None
            if name in state:
                value = np.array(state[name])
                held = [value] if name == "momentum_vector" else {key: value}
            setattr(self._strategy, name, held)


class _Averager(Aggregator):
    """A stateless rule: a function of the current payload and this round's updates only."""

    def __init__(self, rule: Callable[[Vector, Sequence[Update]], Vector]) -> None:
        self._rule = rule

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Apply the rule."""
        del round_number
        return self._rule(payload, updates)


class _Nodes:
    """The part of a Grid that Flower's `configure_train` requires: the node ids, here 1 to `count`."""

    def __init__(self, count: int) -> None:
        self._count = count

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._count + 1))


def create_aggregator(plan: Plan) -> Aggregator:
    """Return the aggregator for a plan.

    Raises:
        ValueError: if the strategy's name is unknown; the message lists the known names.
    """
    if plan.strategy not in AGGREGATORS:
        raise ValueError(f"federation.strategy = '{plan.strategy}': choose one of {', '.join(sorted(AGGREGATORS))}")
    aggregator, private = AGGREGATORS[plan.strategy](plan), plan.site_privacy
    if private is None or private.noise != "central":
        return aggregator
    return NoisyMean(aggregator, private, rounds=plan.rounds)


def _weigh(plan: Plan) -> Callable[[np.ndarray], np.ndarray]:
    return lambda examples: site_weights(examples, plan.weights, plan.weight_cap)


def _flower(name: str, *memory: str) -> Callable[[Plan], Aggregator]:
    def create(plan: Plan) -> Aggregator:
        kind = getattr(flower, name)
        options = {
            key: int(value) if STRATEGIES[plan.strategy].options[key].whole else value
            for key, value in plan.options.items()
        }
        extra = {"train_loss_key": _LOSS} if name == "QFedAvg" else {}
        strategy = kind(
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            weighted_by_key=_WEIGHT,
            arrayrecord_key=_ARRAYS,
            configrecord_key=_CONFIG,
            **options,
            **extra,
        )
        return FlowerAggregator(strategy, memory=memory, weigh=_weigh(plan))

    return create


def _fedavg(plan: Plan) -> Aggregator:
    if plan.averaging == "mean":
        return _flower("FedAvg")(plan)
    weigh = _weigh(plan)
    return _Averager(lambda _x, updates: log_mean_exp(*_stack(updates, weigh), plan.layout))


def _geometric_median(plan: Plan) -> Aggregator:
    weigh = _weigh(plan)
    return _Averager(lambda _x, updates: geometric_median(*_stack(updates, weigh)))


def _fednova(plan: Plan) -> Aggregator:
    weigh = _weigh(plan)
    return _Averager(
        lambda x, updates: fednova(x, *_stack(updates, weigh), np.array([update.steps for update in updates]))
    )


AGGREGATORS: dict[str, Callable[[Plan], Aggregator]] = {
    "fedavg": _fedavg,
    "fedavgm": _flower("FedAvgM", "momentum_vector"),
    "fedprox": _flower("FedProx"),
    "fedadam": _flower("FedAdam", "m_t", "v_t"),
    "fedyogi": _flower("FedYogi", "m_t", "v_t"),
    "fedadagrad": _flower("FedAdagrad", "m_t", "v_t"),
    "fedmedian": _flower("FedMedian"),
    "fedtrimmedavg": _flower("FedTrimmedAvg"),
    "krum": _flower("Krum"),
    "multikrum": _flower("MultiKrum"),
    "bulyan": _flower("Bulyan"),
    "qfedavg": _flower("QFedAvg"),
    "geometric_median": _geometric_median,
    "fednova": _fednova,
    "scaffold": lambda plan: Scaffold(len(plan.sites), _weigh(plan), plan.options["server_learning_rate"]),
    "feddyn": lambda plan: FedDyn(len(plan.sites), _weigh(plan), plan.options["alpha"]),
}


def _stack(updates: Sequence[Update], weigh: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return stack_payloads(updates), weigh(count_examples(updates))


def _as_reply(request: Message, update: Update, weight: float) -> Message:
    metrics = MetricRecord({_WEIGHT: weight, _LOSS: update.loss})
    return Message(RecordDict({_ARRAYS: _as_record(update.payload), _METRICS: metrics}), reply_to=request)


def _as_record(payload: Vector) -> ArrayRecord:
    return ArrayRecord({"payload": Array(np.ascontiguousarray(payload, dtype=np.float32))})
