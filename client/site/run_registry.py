"""The runs that a site has agreed to, on disk, so that a restarted worker can resume without a new proposal.

state/<run>/proposal.json            the accepted proposal, with its digest
state/<run>/round-0007.safetensors   the site's state after that round (`client.site.state_store`)
state/<run>/received.safetensors, answers.jsonl   input of the site's own report (`client.site.run_record`)
state/<run>/local/                   states of the local-only model in the site's report (`client.report.make_report`)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from client.site.run_record import RunRecord
from ept_fed.config.base import Name
from ept_fed.protocol.messages import MessageRefusedError
from ept_fed.protocol.proposal import Proposal
from ept_fed.storage.files import write_json

if TYPE_CHECKING:
    from client.site.state_store import StateFolder

__all__ = ["RunRegistry"]

_FILE = "proposal.json"
_NAME: TypeAdapter[str] = TypeAdapter(Name)


class RunRegistry:
    """Proposals and states of one site by run; only the worker's user has access to the folder."""

    def __init__(self, folder: Path, site: str) -> None:
        """Take the folder, and make it if needed."""
        self._folder, self._site = folder, site
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, newest agreement first."""
        found = sorted(self._folder.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        return tuple(path.parent.name for path in found)

    def find(self, run: str) -> Proposal:
        """Return the proposal that was agreed to for a run.

        Raises:
            MessageRefusedError: for a run that was never proposed, or whose file is damaged.
        """
        path = self._path(run) / _FILE
        if not path.exists():
            raise MessageRefusedError(
                f"run {run} was never proposed to this site; the server has to introduce it first"
            )
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            proposal = Proposal.model_validate(document["proposal"])
            sound = (document["schema"], document["run"], document["digest"]) == (1, run, proposal.digest)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise MessageRefusedError(f"the proposal that the site agreed to for run {run} cannot be read") from error
        if not sound:
            raise MessageRefusedError(f"the proposal that the site agreed to for run {run} was altered on disk")
        return proposal

    def agree(self, run: str, proposal: Proposal) -> None:
        """Store an agreement; to agree to the same proposal again changes nothing.

        Raises:
            MessageRefusedError: if the run's name is not valid, or the site agreed to another proposal under this name.
        """
        path = self._path(run) / _FILE
        if path.exists():
            if self.find(run).digest != proposal.digest:
                raise MessageRefusedError(
                    f"run {run} was proposed to this site with other settings; use another run name"
                )
            return
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(
            path, {"schema": 1, "run": run, "digest": proposal.digest, "proposal": proposal.model_dump(mode="json")}
        )

    def states(self, run: str) -> "StateFolder":
        """Return the store of the site's states in a run."""
        # Imported here because it loads torch, which takes seconds, and `ept-fed site check` needs only the names.
        from client.site.state_store import StateFolder

        return StateFolder(self._path(run), run=run, site=self._site)

    def record(self, run: str) -> RunRecord:
        """Return the site's record of a run, for its own report."""
        return RunRecord(self._path(run), run=run, site=self._site)

    def local(self, run: str) -> Path:
        """Return the folder in which the site's own report keeps the states of its local-only model."""
        return self._path(run) / "local"

    def _path(self, run: str) -> Path:
        """Return a run's folder; the name comes from the server, so it must not lead to any other folder."""
        try:
            return self._folder / _NAME.validate_python(run)
        except ValidationError as error:
            raise MessageRefusedError(
                "the run's name is not 1 to 64 letters, digits, dots, dashes or underscores"
            ) from error
