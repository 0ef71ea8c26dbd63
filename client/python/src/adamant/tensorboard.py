"""Writes what happens to a parameter set for TensorBoard: the program `adamant-tensorboard`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tensorboard.summary import Writer

import adamant
from adamant import errors, v1


class Recorder:
    """Makes scalars of a set's events.

    Of each step: `grad_norm`, `learning_rate/GROUP`, `staleness` where it is asynchronous, `step_time` (seconds since
    the step before, as they are heard of here), and the metrics that its client sent, by their names under `metrics/`.
    Of each step that was not: `skipped`, how many there were. Of rounds that came to nothing: `rounds_failed`. Where
    the watch was too slow: `missed`, how many events that has cost.
    """

    def __init__(self, writer: Any, clock: Any = time.time) -> None:
        self._writer = writer
        self._clock = clock
        self._groups: list[str] = []
        self._last: tuple[int, float] | None = None
        self._counts: dict[str, int] = {}

    def take(self, event: v1.WatchParameterSetResponse) -> None:
        """Writes one event."""
        now = self._clock()
        kind = event.WhichOneof("event")
        if event.missed:
            self._count("missed", event.missed, event.step, now)
        if kind in ("current", "config_changed"):
            self._groups = [group.name for group in getattr(event, kind).groups]
        if kind in ("current", "written"):
            self._last = event.step, now
        elif kind == "committed":
            self._committed(event.committed, event.step, now)
        elif kind == "skipped":
            self._count("skipped", 1, event.step, now)
        elif kind == "round_failed":
            self._count("rounds_failed", 1, event.step, now)
        # TensorBoard reads while it is written.
        self._writer.flush()

    def _committed(self, committed: v1.CommittedEvent, step: int, now: float) -> None:
        self._add("grad_norm", committed.grad_norm, step, now)
        for group, rate in zip(self._groups, committed.learning_rates):
            self._add(f"learning_rate/{group}", rate, step, now)
        if committed.staleness:
            self._add("staleness", committed.staleness, step, now)
        for name, value in sorted(committed.metrics.items()):
            self._add(f"metrics/{name}", value, step, now)
        if self._last is not None and step > self._last[0]:
            # Of those that were missed, the mean.
            self._add("step_time", (now - self._last[1]) / (step - self._last[0]), step, now)
        self._last = step, now

    def _count(self, tag: str, more: int, step: int, now: float) -> None:
        self._counts[tag] = self._counts.get(tag, 0) + more
        self._add(tag, self._counts[tag], step, now)

    def _add(self, tag: str, value: float, step: int, now: float) -> None:
        self._writer.add_scalar(tag, value, step, wall_time=now)


def record(events: Iterable[v1.WatchParameterSetResponse], logdir: str) -> None:
    """Writes events, such as those of `Client.watch`, until they end."""
    writer = Writer(logdir)
    try:
        recorder = Recorder(writer)
        for event in events:
            recorder.take(event)
    finally:
        writer.close()


def watch(client: adamant.Client, name: str) -> Iterable[v1.WatchParameterSetResponse]:
    """A set's events until it is deleted: where the connection is lost, from another one on."""
    while True:
        try:
            with client.watch(name) as events:
                yield from events
                return
        except (errors.UnavailableError, errors.DrainingError) as error:
            print(f"adamant-tensorboard: {error}: watching again", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Ends when the set is deleted, or at Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="adamant-tensorboard", description="Writes what happens to a parameter set for TensorBoard."
    )
    parser.add_argument("--target", help="the server's address (default: $ADAMANT_TARGET)")
    parser.add_argument("--set", required=True, dest="name", help="the parameter set's name")
    parser.add_argument("--logdir", required=True, help="where TensorBoard looks; a run is one folder of it")
    given = parser.parse_args(arguments)
    try:
        with adamant.Client(given.target) as client:
            record(watch(client, given.name), given.logdir)
    except KeyboardInterrupt:
        pass
    except (adamant.AdamantError, ValueError) as error:
        print(f"adamant-tensorboard: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
