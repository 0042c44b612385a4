"""A site's own settings, `site.yaml`: paths of its images and weights, and settings of its worker.

The consortium proposes the training (`ept_fed.protocol.proposal`). `join_proposal` combines both into one experiment.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ept_fed.config.base import Count, Name, Positive, Settings
from ept_fed.config.data import AnyDataSettings, ManifestSettings, SharedDataSettings
from ept_fed.config.experiment import Experiment, LocalModelSettings
from ept_fed.config.yaml_reader import read_mapping, validate_settings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.proposal import Proposal
from ept_fed.validation.data import check_exists
from ept_fed.validation.experiment import validate_experiment

__all__ = [
    "NodeSettings",
    "SiteSettings",
    "WorkerSettings",
    "check_site",
    "join_proposal",
    "load_site_settings",
]

_LONGEST_SOCKET = 100  # bytes; the limit is 108 on Linux and 104 on macOS, and `.st` is appended to the path
_SHARED = frozenset(SharedDataSettings.model_fields) | {"partition"}


class WorkerSettings(Settings):
    """The long-running process that holds images and model."""

    socket: Path = Field(
        Path("run/worker.sock"), description="Unix socket through which SuperNode's app connects to the worker"
    )
    socket_group: str | None = Field(
        None, description="group that may connect, for a SuperNode that runs as another user; null: only the owner"
    )
    state: Path = Field(
        Path("state"), description="folder of the data that the site keeps between rounds, including local heads"
    )
    threads: Count | None = Field(None, description="CPU threads for training; null: torch's default")
    hold_minutes: Positive = Field(
        10.0, description="minutes after the last message of a run until another run may start"
    )


class NodeSettings(Settings):
    """Flower's SuperNode, the process that connects to the network."""

    runtime_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        9094,
        description="loopback port of SuperNode's own processes; each SuperNode on a machine needs a different one",
    )


class SiteSettings(Settings):
    """One site; the root of a site.yaml. Paths are relative to its folder, the kit."""

    site: Name = Field(description="name of the site, as in federation.json")
    data: AnyDataSettings = Field(
        description="the source's own settings, without the settings that the consortium proposes"
    )
    model: LocalModelSettings = LocalModelSettings()
    worker: WorkerSettings = WorkerSettings()
    node: NodeSettings = NodeSettings()
    policy: Path = Field(
        Path("policy.yaml"), description="file that states which data the site accepts and which it sends"
    )


def load_site_settings(path: Path) -> SiteSettings:
    """Read a site.yaml and make its paths absolute.

    Whether the paths exist is not checked, because SuperNode's user may not have access to the images.

    Raises:
        InputRefusedError: with every problem of the file.
    """
    raw = read_mapping(path, "site.yaml", "a mapping with 'site' and 'data'")
    settings, problems = validate_settings(SiteSettings, raw, lambda _: [])
    problems += _find_misplaced(raw.get("data"))
    if problems or settings is None:
        raise InputRefusedError(problems)
    settings = _make_absolute(settings, path.resolve().parent)
    length = len(bytes(settings.worker.socket))
    if length > _LONGEST_SOCKET:
        fix = f"has {length} bytes; a socket's path may have {_LONGEST_SOCKET}; use a shorter path, e.g. below /run"
        raise InputRefusedError([Problem("worker.socket", str(settings.worker.socket), fix)])
    return settings


def check_site(settings: SiteSettings) -> list[Problem]:
    """Return a problem for every path that the worker needs and that does not exist."""
    found = []
    if settings.model.weights not in (None, "pretrained"):
        found += check_exists("model.weights", Path(str(settings.model.weights)))
    return found + check_exists("data.root", settings.data.root)


def join_proposal(settings: SiteSettings, proposal: Proposal) -> Experiment:
    """Return the experiment that combines a proposal and a site's own settings.

    Raises:
        InputRefusedError: with all settings that do not fit together.
    """
    data = settings.data.model_dump() | proposal.data.model_dump()
    if isinstance(settings.data, ManifestSettings) and settings.data.columns.site is None:
        data["partition"] = {"kind": "iid", "sites": 1}
    problems = []
    if proposal.model.backbone.startswith("hf-hub:") and settings.model.weights != "pretrained":
        fix = "would be fetched from a network; to allow that, set model.weights in site.yaml to 'pretrained'"
        problems.append(Problem("model.backbone", proposal.model.backbone, fix))
    experiment = Experiment.model_validate(
        {
            **proposal.model_dump(exclude={"sites"}),
            "data": data,
            "model": proposal.model.model_dump() | settings.model.model_dump(),
        }
    )
    problems += validate_experiment(experiment)
    if problems:
        raise InputRefusedError(problems)
    return experiment


def _find_misplaced(data: Any) -> list[Problem]:
    """Return a problem for every data setting that a site may not choose itself."""
    fix = "is proposed by the consortium, the same for all sites; remove it"
    chosen = sorted(_SHARED & set(data)) if isinstance(data, dict) else []
    return [Problem(f"data.{name}", data[name], fix) for name in chosen]


def _make_absolute(settings: SiteSettings, kit: Path) -> SiteSettings:
    data, model, worker = settings.data, settings.model, settings.worker
    weights = model.weights
    if weights not in (None, "pretrained"):
        model = model.model_copy(update={"weights": str(kit / Path(str(weights)).expanduser())})
    paths = {"socket": kit / worker.socket.expanduser(), "state": kit / worker.state.expanduser()}
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"root": kit / data.root.expanduser()}),
            "model": model,
            "worker": worker.model_copy(update=paths),
            "policy": kit / settings.policy.expanduser(),
        }
    )
