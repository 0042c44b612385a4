"""Trackers receive finite numbers under names that every viewer accepts, and no settings of a machine."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import Experiment
from ept_fed.reports.run.round_record import Refusal, RoundRecord, SiteExchange
from ept_fed.tracking.scalars import MAX_SITES, describe_settings, list_result, list_round, plain_name, tabulate

NAMES = st.one_of(st.text(min_size=1), st.sampled_from(["north", "a/b", "..", "München", "x" * 300, "a b", "a_b"]))


def record_of(sites: int) -> RoundRecord:
    exchange = SiteExchange(train={"loss": 0.5}, evaluation={"auc": math.nan}, bytes_sent=30, bytes_received=20)
    names = [f"site-{number}" for number in range(sites)]
    refused = [Refusal("site-0", "train", "declined")]
    return RoundRecord(1, 2.0, tuple(names), tuple(names[1:]), "aggregated", dict.fromkeys(names, exchange), refused)


@given(first=NAMES, second=NAMES)
def test_names_are_plain_and_stay_distinct(first: str, second: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,89}", plain_name(first))
    assert plain_name(first).strip(".")
    assert (plain_name(first) == plain_name(second)) == (first == second)


def test_a_round_has_sums_medians_and_the_values_of_every_site() -> None:
    numbers = list_round(record_of(3))
    assert numbers["round/seconds"] == 2
    assert (numbers["round/refused"], numbers["round/averaged"], numbers["refused/site-0"]) == (1, 2, 1)
    assert (numbers["round/bytes_to_site"], numbers["bytes_from_site/site-2"]) == (90, 20)
    assert numbers["median/loss"] == numbers["loss/site-1"] == 0.5


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_values_that_were_not_measured_are_left_out(missing: float) -> None:
    record = record_of(2)
    record.sites["site-0"] = SiteExchange(train={"loss": missing})
    numbers = list_round(record)
    assert "loss/site-0" not in numbers
    assert numbers["median/loss"] == 0.5
    assert not [name for name in numbers if name.startswith(("auc/", "median/auc"))]


def test_a_thousand_sites_do_not_make_a_thousand_curves() -> None:
    assert len(list_round(record_of(MAX_SITES + 1))) < 10
    rows = [{"site": f"site-{number}", "federated_auc": 0.5} for number in range(MAX_SITES + 1)]
    assert list(list_result([*rows, {"site": "mean over sites", "federated_auc": 0.5}])) == [
        f"test/federated_auc/{plain_name('mean over sites')}"
    ]


def test_the_table_has_every_row_and_escapes_names() -> None:
    text = tabulate([{"site": "a|b", "auc": 0.25}, {"site": "c", "auc": math.nan}])
    assert text.splitlines() == ["| site | auc |", "| --- | --- |", "| a\\|b | 0.2500 |", "| c | – |"]
    assert tabulate([]) == "No round was averaged."


def test_settings_of_a_machine_are_not_tracked() -> None:
    data = {"source": "folder", "root": "secret-place", "classes": ["a", "b"]}
    settings = {"about": "secret-words", "data": data, "model": {"weights": "secret.pth", "device": "cpu"}}
    told = describe_settings(Experiment.model_validate(settings))
    assert "secret" not in str(told)
    assert told["training.prompt_lr"] == 0.05
    assert told["data.classes"] == '["a", "b"]'
    assert not {"model.device", "data.root"} & set(told)
