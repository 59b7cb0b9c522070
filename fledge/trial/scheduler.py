"""Sites of one process train one at a time: their dice are not mixed, memory is that of one, the order is known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fledge.trial.source import seeded
from protocol.errors import Aborted
from worker.api.trainer import Control, EvaluationResult, Trainer, TrainResult
from worker.api.weights import Weights

_LOOK_S = 0.05
"""How often a site that waits for its turn looks whether it was told to stop."""


class Scheduler:
    """Whose turn it is; called from the sites' training threads, the aggregator's and the one that measures."""

    def __init__(self, sites: Sequence[str], *, in_order: bool) -> None:
        """`in_order`: each site once, one after another, the next not before the last one's update has arrived."""
        self._changed = threading.Condition()
        self._sites = list(sites)
        self._in_order = in_order
        self._next = 0
        self._busy = False
        self._under_way = False
        self._held = False
        self._over = False

    @property
    def quiet(self) -> bool:
        """Whether nobody trains, and no update is on its way."""
        with self._changed:
            return not self._busy and not self._under_way

    @contextmanager
    def training(self, site: str, control: Control) -> Iterator[None]:
        """A site's turn to train; its update is on its way afterwards.

        Raises:
            Aborted: it was told to stop while it waited.
        """
        with self._changed:
            while not self._may(site):
                if self._over:
                    raise Aborted("the trial is over")
                control.check()
                self._changed.wait(_LOOK_S)
            self._busy = True
        good = False
        try:
            yield
            good = True
        finally:
            with self._changed:
                self._busy, self._under_way = False, good and self._in_order
                self._changed.notify_all()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Nobody trains meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def arrived(self) -> None:
        """The update that was on its way has come: it is the next site's turn."""
        with self._changed:
            if self._under_way:
                self._under_way = False
                self._next = (self._next + 1) % len(self._sites)
                self._changed.notify_all()

    def hold(self) -> None:
        """Nobody begins to train until `release`."""
        with self._changed:
            self._held = True

    def release(self) -> None:
        """What was to be measured is."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def stop(self) -> None:
        """Whoever waits for a turn waits no longer."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _may(self, site: str) -> bool:
        if self._busy or self._held or self._over:
            return False
        return not self._in_order or (not self._under_way and self._sites[self._next] == site)


class ScheduledTrainer:
    """A site's trainer that waits for its turn, and whose failures are seen."""

    def __init__(
        self,
        site: str,
        trainer: Trainer,
        scheduler: Scheduler,
        *,
        trained: Callable[[str, int, TrainResult], None],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        """`trained` is told the site, the base version and the result."""
        self.trainer = trainer
        self._site = site
        self._scheduler = scheduler
        self._trained, self._failed = trained, failed

    def __getattr__(self, name: str) -> object:
        return getattr(self.trainer, name)  # what a trainer may have besides: `keeps`, `key_metric`, its model

    def train(self, base: Weights, control: Control) -> TrainResult:
        """Train when it is this site's turn."""
        with self._scheduler.training(self._site, control):
            try:
                seeded(control.seed)
                result = self.trainer.train(base, control)
            except Aborted:
                raise
            except BaseException as error:  # an exit or an interrupt, too: nobody waits for what will never come
                self._failed(self._site, error)
                raise
            self._trained(self._site, control.version, result)
            return result

    def evaluate(self, model: Weights, control: Control) -> EvaluationResult:
        """Evaluate when nobody trains."""
        with self._scheduler.measuring():
            return self.trainer.evaluate(model, control)
