"""Tests of the site's policy: it is strict by default, and refused as a whole if any part is invalid."""

import logging
from pathlib import Path

import pytest

from client.gate.policy import Policy, TrainingRanges, load_policy
from ept_fed.config.experiment import TrainingSettings
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.messages import EVALUATE_METRICS, QUALITY_METRICS

TEMPLATE = Path(__file__).resolve().parents[3] / "ept_fed" / "assets" / "policy.yaml"


def test_without_a_file_the_strictest_policy_applies_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        policy = load_policy(tmp_path / "policy.yaml")
    assert policy == Policy()
    assert "strictest policy" in caplog.text
    assert not policy.outgoing.head
    assert not policy.outgoing.gradient
    assert policy.incoming.backbone is None


def test_the_template_equals_the_default_except_for_the_backbone() -> None:
    policy = load_policy(TEMPLATE)
    assert policy.incoming.backbone == "first"
    strict = policy.model_copy(update={"incoming": policy.incoming.model_copy(update={"backbone": None})})
    assert strict == Policy()


def test_the_template_shows_every_rule() -> None:
    policy, text = Policy(), TEMPLATE.read_text()
    for section in (policy.outgoing, policy.incoming, policy.incoming.training, policy.outgoing.update):
        for name in type(section).model_fields:
            assert f"{name}:" in text, name


def test_every_number_that_a_server_can_request_has_a_range() -> None:
    numbers = {name for name, value in TrainingSettings() if isinstance(value, (int, float)) and value is not False}
    assert numbers == set(TrainingRanges.model_fields)
    training = TrainingSettings()
    for name, (least, maximum) in TrainingRanges():
        assert least <= getattr(training, name) <= maximum


def test_every_metric_of_the_protocol_can_be_allowed() -> None:
    assert set(Policy().outgoing.metrics) == {*QUALITY_METRICS, "seconds"} == set(EVALUATE_METRICS)


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "outgoing: {heads: true, digits: 99, tensors: [images, head.weight], metrics: [confusion]}\n"
        "incoming: {training: {epochs: [3, 1]}, methods: [eptt], backbone: [abc]}\n"
    )
    with pytest.raises(InputRefusedError) as refusal:
        load_policy(path)
    fields = {problem.field for problem in refusal.value.problems}
    assert fields >= {
        "schema",
        "outgoing.heads",
        "outgoing.digits",
        "outgoing.tensors.0",
        "outgoing.tensors.1",
        "outgoing.metrics.0",
        "incoming.training.epochs",
        "incoming.methods.0",
    }
    assert "did you mean 'head'?" in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "schema: 2", "schema: 1\nschema: 1", "schema: 1\noutgoing: {head: maybe}"),
        *(
            f"schema: 1\noutgoing: {{{rule}}}"
            for rule in (
                "min_images: 0",
                "min_training_images: 0",
                "min_class_images: 0",
                "min_secure_aggregation_sites: 2",
                "digits: -1",
                "digits: 16",
                "statistics: all",
                "tensors: [statistics.shares]",
                "update: {bound: 0}",
                "update: {above: pass}",
                "budget: {delta: 1e-5}",
                "budget: {epsilon: 0}",
                "budget: {epsilon: 1, delta: 0}",
                "budget: {epsilon: 1, delta: 1}",
                "budget: {epsilon: 1, noise: [none]}",
            )
        ),
        *(
            f"schema: 1\nincoming: {{{rule}}}"
            for rule in ("rounds: [-1, 5]", "rounds: [1, .inf]", "prompt_change: 0", "backbone: last", "splits: [all]")
        ),
    ],
)
def test_an_invalid_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputRefusedError):
        load_policy(path)


def test_the_ends_of_a_rule_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "schema: 1\nincoming: {rounds: [3, 3]}\n"
        "outgoing: {digits: 0, min_images: 1, min_training_images: 1, min_class_images: 1, statistics: moments,"
        " min_secure_aggregation_sites: 3, tensors: [sinks, prompts], budget: {epsilon: 0.1, delta: 0.5}}\n"
    )
    policy = load_policy(path)
    assert policy.incoming.rounds == (3, 3)
    assert policy.outgoing.budget is not None
    assert policy.outgoing.budget.noise == ("local",)


def test_a_changed_rule_changes_the_digest() -> None:
    looser = Policy.model_validate({"schema": 1, "outgoing": {"head": True}})
    assert looser.digest != Policy().digest == Policy.model_validate({"schema": 1}).digest
