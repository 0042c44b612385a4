"""The TensorBoard writer: one event file, written with the `tensorboard` package only, without importing torch."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from ept_fed.tracking.writer import TrackedRun

__all__ = ["TensorBoardWriter"]


class TensorBoardWriter:
    """Writes `events.out.tfevents.<run>` from the beginning; a caller that reopens it must write earlier rounds again.

    The library's own event writer is not used, because it puts the machine's host name into the file name.
    """

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        """Create the file and write the settings.

        Raises:
            OSError: if the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{run.run}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write_summary(hparams_pb(dict(run.settings), trial_id=run.run), 0)
        rows = "\n".join(f"| {key} | {value} |" for key, value in run.settings.items())
        self._write_text("settings", f"{run.name}\n\n| setting | value |\n|---|---|\n{rows}", 0)
        self._file.flush()

    def write_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Append the numbers; see `Writer.write_round`."""
        self._write_scalars(scalars, number)
        self._file.flush()

    def write_result(self, number: int, scalars: Mapping[str, float], table: str) -> None:
        """Append the table; see `Writer.write_result`."""
        self._write_scalars(scalars, number)
        self._write_text("comparison", table, number)
        self._file.flush()

    def close(self, *, done: bool) -> None:  # noqa: ARG002 - an event file has no status
        """Close the file."""
        self._file.close()

    def _write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=name, simple_value=number) for name, number in scalars.items()]
        self._write_summary(Summary(value=values), step)

    def _write_text(self, tag: str, text: str, step: int) -> None:
        content = TensorProto(
            dtype=DT_STRING,
            string_val=[text.encode()],
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
        )
        metadata = create_summary_metadata(tag, "")
        self._write_summary(Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=content)]), step)

    def _write_summary(self, summary: Summary, step: int) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
