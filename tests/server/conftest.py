"""Flower logs every phase; tests of the server do not."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _quiet_flower() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
