"""The ClientApp of `flwr run`: virtual sites under Flower's own runtimes.

A node stands for the site that its node config names as `site`, or, under Flower's simulation, for the one at place
`partition-id` in the experiment. Every message may reach another process, so what a site remembers goes into Flower's
`context.state`, which never leaves the node.
"""

import functools
import logging

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.in_process_app import create_client_app
from client.site.context_state_store import ContextStates
from client.site.site import Site
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
    """Answer who this node is, and with which plan; exception texts stay in this node's log."""
    try:
        federation = _federation(context)
        introduction = Introduction(_site_name(context, tuple(federation.data.sites)), federation.plan())
        return encode_introduction(introduction, message)
    except InputRefusedError as refusal:
        _log.error("cannot stand for a site: %s", refusal)
        fields = ", ".join(problem.field for problem in refusal.problems)
        return Message(Error(code=SITE_REFUSED, reason=f"refused settings: {fields}"), reply_to=message)
    except Exception:  # noqa: BLE001 - whatever it is, its text must not leave the node
        _log.exception("cannot stand for a site")
        return Message(Error(code=SITE_FAILED, reason="the node's own log says why"), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's site for a round."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the payload at the node's site."""
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    """Let the site answer as it would anywhere else; its states go into the node's context for the next message."""

    def find_site(context: Context) -> Site:
        federation = _federation(context)
        sites = federation.data.sites
        return federation.create_site(sites[_site_name(context, tuple(sites))], ContextStates(context.state))

    reply: Message = create_client_app(find_site)(message, context)
    return reply


def _site_name(context: Context, sites: tuple[str, ...]) -> str:
    """Return the site that this node stands for.

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
    """Load backbone and data once per process: Ray's workers serve many messages."""
    return prepare_federation(read_experiment({"experiment": experiment, "set": overrides}))
