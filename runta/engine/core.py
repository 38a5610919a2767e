"""What every part of the engine shares: the rooms it was given, the records, the live runtimes, the locks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from runta.engine.box import Box
from runta.engine.journal import Journal
from runta.engine.sandbox import Sandboxes
from runta.errors import FailedPrecondition, NotFound, Unavailable
from runta.layout import Layout
from runta.models import Checkpoint, CheckpointState, IdMap, Runtime, RuntimeStatus, may_follow, now
from runta.rules import require_running, suggest
from runta.store.checkpoints import Checkpoints, HostFacts
from runta.store.database import Database
from runta.store.images import Images
from runta.store.inits import Inits
from runta.store.layers import Layers
from runta.store.secrets import Secrets
from runta.store.staging import stage

log = logging.getLogger("runta.engine")
T = TypeVar("T")

ANSWER_AFTER = 20.0
"""Seconds after which a request is answered with the state of that moment: clients wait 30 s."""
_AT_ONCE = 2
"""Containers that one CPU brings up or dumps at a time; the others wait their turn."""


@dataclass(slots=True)
class Audience:
    """Whether anybody still waits for the result of some work."""

    present: bool = True


@dataclass(slots=True, kw_only=True)
class Core:
    """The engine's rooms and memory."""

    layout: Layout
    database: Database
    sandboxes: Sandboxes
    images: Images
    layers: Layers
    inits: Inits
    checkpoints: Checkpoints
    secrets: Secrets
    journal: Journal
    facts: HostFacts
    ids: IdMap
    init_digest: str
    boxes: dict[str, Box] = field(default_factory=dict)
    locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """One a runtime: whoever changes its state holds it."""
    jobs: set[asyncio.Task[Any]] = field(default_factory=set)
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE * (os.cpu_count() or 1)))
    """Whoever starts, dumps or restores a container takes one."""
    pinned: Counter[str] = field(default_factory=Counter)
    """Layers that somebody is about to stand on, and no record says so yet."""
    flattening: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from the making of a flat layer until a record names it, and by whoever sweeps layers."""
    answer_after: float = ANSWER_AFTER

    def find_runtime(self, ref: str) -> Runtime:
        """By id or name. Raises NotFound."""
        runtime = self.database.find_runtime(ref)
        if runtime is None:
            hint = suggest(ref, (found.name for found in self.database.runtimes())) or "`runta run` makes one"
            raise NotFound(f"there is no runtime {ref!r}", hint=hint)
        return runtime

    def find_checkpoint(self, ref: str) -> Checkpoint:
        """By id or name. Raises NotFound."""
        checkpoint = self.database.find_checkpoint(ref)
        if checkpoint is None:
            known = (found.name for found in self.database.checkpoints())
            hint = suggest(ref, known) or "`runta snapshot create RUNTIME NAME` makes one"
            raise NotFound(f"there is no checkpoint {ref!r}", hint=hint)
        return checkpoint

    def find_ready(self, ref: str) -> Checkpoint:
        """A checkpoint that can be restored. Raises NotFound or FailedPrecondition."""
        checkpoint = self.find_checkpoint(ref)
        if checkpoint.state is not CheckpointState.READY:
            making = checkpoint.state is CheckpointState.CREATING
            raise FailedPrecondition(
                f"checkpoint '{checkpoint.name}' is not ready (state: {checkpoint.state})",
                cause=checkpoint.error_message,
                hint="wait until it is ready" if making else "make another one",
            )
        return checkpoint

    def box(self, runtime: Runtime) -> Box:
        """The live side of a runtime that accepts work. Raises FailedPrecondition saying what would make it so."""
        require_running(runtime)
        box = self.boxes.get(runtime.id)
        if box is None:
            raise Unavailable(
                f"runtime {runtime.name} does not answer", hint=f"`runta inspect {runtime.name}` tells more"
            )
        return box

    def move(self, runtime: Runtime, status: RuntimeStatus, **changes: Any) -> Runtime:
        """Record a new state. Raises FailedPrecondition if it may not follow the present one."""
        if status is not runtime.status and not may_follow(runtime.status, status):
            raise FailedPrecondition(
                f"runtime {runtime.name} can't become {status}",
                cause=f"it is {runtime.status}",
                hint="wait, or remove it",
            )
        return self.save(runtime, status=status, **changes)

    def save(self, runtime: Runtime, **changes: Any) -> Runtime:
        """Record changes of a runtime."""
        changed = replace(runtime, updated_at=now(), **changes)
        self.database.save_runtime(changed)
        if changed.status is not runtime.status:
            log.info("runtime %s (%s): %s -> %s", changed.name, changed.id, runtime.status, changed.status)
        return changed

    async def answer(
        self, work: Callable[[Audience], Coroutine[Any, Any, T]], *, name: str, meanwhile: Callable[[], T]
    ) -> T:
        """What `work` returns or raises. Where it takes long it goes on, and the answer is `meanwhile`'s.

        The work can see whether its audience has left: then nobody will hear of a failure but through the record.
        """
        audience = Audience()
        job = self.spawn(work(audience), name=name)
        try:
            done, _ = await asyncio.wait({job}, timeout=self.answer_after)
        except asyncio.CancelledError:
            audience.present = False
            raise
        if done:
            result: T = job.result()
            return result
        audience.present = False
        return meanwhile()

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run work that outlives the request; the engine waits for it when it closes."""
        job = asyncio.create_task(work, name=name)
        self.jobs.add(job)
        job.add_done_callback(self._forget_job)
        return job

    def _forget_job(self, job: asyncio.Task[Any]) -> None:
        self.jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.info("%s: %s", job.get_name(), error)

    def _records(self) -> list[Runtime | Checkpoint]:
        return [*self.database.runtimes(), *self.database.checkpoints()]

    @contextlib.contextmanager
    def pinning(self, layers: tuple[str, ...]) -> Iterator[None]:
        """No sweep removes these layers while the block lasts."""
        self.pinned.update(layers)
        try:
            yield
        finally:
            self.pinned.subtract(layers)
            self.pinned = +self.pinned

    @contextlib.asynccontextmanager
    async def staged(self) -> AsyncIterator[Path]:
        """A staging directory. It may hold gigabytes: a thread removes it, and a dump of it that lies elsewhere."""
        hold = contextlib.ExitStack()
        place = await asyncio.to_thread(hold.enter_context, stage(self.layout.staging))
        hold.enter_context(self.sandboxes.dumps.homing(place))
        try:
            yield place
        finally:
            await asyncio.to_thread(hold.close)

    @contextlib.asynccontextmanager
    async def shortened(self, layers: tuple[str, ...]) -> AsyncIterator[tuple[str, ...]]:
        """A chain that another layer can be put on. No sweep removes it while the block lasts, which records it."""
        async with self.flattening:
            shortened = await asyncio.to_thread(self.layers.shorten, layers)
            yield shortened

    async def sweep_layers(self) -> None:
        """Remove layers that no runtime and no checkpoint stands on."""
        async with self.flattening:
            needed = {layer for record in self._records() for layer in record.spec.layers} | set(self.pinned)
            await asyncio.to_thread(self.layers.sweep, needed)

    def needed_inits(self) -> set[str]:
        """Init binaries that a runtime or a checkpoint was made with, and the present one."""
        return {self.init_digest, *(record.spec.init for record in self._records())}

    def image_users(self, image_id: str) -> list[str]:
        """Names of the runtimes and checkpoints that stand on an image."""
        return [record.name for record in self._records() if record.spec.image == image_id]
