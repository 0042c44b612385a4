"""The ClientApp of `flwr run`: virtual sites under Flower's own runtimes.

A node represents the site that its node config names as `site`. Under Flower's simulation, it represents the site with
index `partition-id` in the experiment. Each message may reach another process, so the state of a site is kept in
Flower's `context.state`, which never leaves the node.
"""

import functools
import logging

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.in_process_app import create_client_app
from client.requests.respond import SitePart
from client.site.flower_state_store import ContextStates
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.flower.records import SITE_FAILED, SITE_REFUSED
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation
from simulations.flower.introduction import Introduction, encode_introduction
from simulations.flower.run_config import read_experiment

__all__ = ["app"]

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`
app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Reply with this node's site and plan; exception texts stay in this node's log."""
    try:
        federation = _federation(context)
        introduction = Introduction(_site_name(context, tuple(federation.data.sites)), federation.plan())
        return encode_introduction(introduction, message)
    except InputRefusedError as refusal:
        _log.error("cannot represent a site: %s", refusal)
        fields = ", ".join(problem.field for problem in refusal.problems)
        return Message(Error(code=SITE_REFUSED, reason=f"refused settings: {fields}"), reply_to=message)
    except Exception:  # noqa: BLE001 - the text of an exception must not leave the node
        _log.exception("cannot represent a site")
        return Message(Error(code=SITE_FAILED, reason="see the node's own log"), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's site for a round."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the payload at the node's site."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    """Return the site's reply; its states are kept in the node's context for the next message."""

    def find_part(context: Context) -> SitePart:
        federation = _federation(context)
        sites = federation.data.sites
        site = federation.create_site(sites[_site_name(context, tuple(sites))], ContextStates(context.state))
        return federation.take_part(site)

    reply: Message = create_client_app(find_part)(message, context)
    return reply


def _site_name(context: Context, sites: tuple[str, ...]) -> str:
    """Return the name of the site that this node represents.

    Raises:
        InputRefusedError: if the node config names none of the experiment's sites.
    """
    config = context.node_config
    if "site" in config:
        if config["site"] in sites:
            return str(config["site"])
        raise InputRefusedError([Problem("site", config["site"], f"give one of {', '.join(sites)} in --node-config")])
    place = config.get("partition-id")
    if isinstance(place, int) and 0 <= place < len(sites):
        return sites[place]
    fix = f"the experiment has {len(sites)} sites; set num-supernodes={len(sites)}, or site=NAME in --node-config"
    raise InputRefusedError([Problem("partition-id", place, fix)])


def _federation(context: Context) -> VirtualFederation:
    return _prepare(str(context.run_config["experiment"]), str(context.run_config["set"]))


@functools.lru_cache(maxsize=1)
def _prepare(experiment: str, overrides: str) -> VirtualFederation:
    """Load backbone and data once per process, because Ray's workers serve many messages."""
    return prepare_federation(read_experiment({"experiment": experiment, "set": overrides}))
