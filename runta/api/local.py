"""What is ours, beside the public API: everything under /v2/local.

| method, path below /v2/local | query, body | success |
|---|---|---|
| GET /runtimes/{id}, /checkpoints/{id} | | 200 {data: all fields of runta.models; a runtime also its memory now} |
| POST /checkpoints/{id}/restore | as POST /v2/runtimes, and {lazy} | 201 {data: runtime, as the public API has it} |
| POST /runtimes/{id}/fork | {names: [name or null]} | 201 {data: [{runtime or null, error or null}]} |
| POST /runtimes/{id}/rollback | {checkpoint: id or name} | 200 {data: runtime} |
| GET /runtimes/{id}/tasks | | 200 {data: [TaskInfo]} |
| POST /runtimes/{id}/tasks/{task}/signal | {signal: name} | 200 {data: {}} |
| WebSocket /runtimes/{id}/tasks/{task}/attach | stdout_offset, stderr_offset | exec stream frames, with offsets |
| GET, PUT /runtimes/{id}/content | path; PUT: mode (octal) | 200 bytes, 204 |
| GET, PUT /runtimes/{id}/archive | path | 200 tar, 204 |
| GET /images | | 200 {data: [Image]} |
| POST /images/build | {name} | 201 {data: Image} |
| POST /images/import | name; body: the archive | 201 {data: Image} |
| DELETE /images/{id} | | 200 {data: {}} |

`{id}` is an id or a name. Field names are those of `runta.models`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from runta.api.answers import (
    Done,
    ForkView,
    InspectedRuntime,
    Listed,
    RuntimeView,
    Single,
    answers,
    binary,
    empty,
    takes_bytes,
)
from runta.api.chunks import OCTETS, TAR, respond_in_chunks
from runta.api.context import EngineOf
from runta.api.files import PathOf
from runta.api.frames import parse_signal
from runta.api.runtimes import IdempotencyKey
from runta.api.schemas import BuildBody, ForkBody, LocalRestore, RollbackBody, SignalBody
from runta.api.session import Session
from runta.api.views import Json, view_fork, view_local, view_runtime
from runta.models import Checkpoint, Image, TaskInfo

router = APIRouter(prefix="/v2/local", tags=["local"])

Offset = Annotated[int | None, Query(ge=0)]
Mode = Annotated[str, Query(pattern="^0?[0-7]{3,4}$")]


@router.get("/runtimes/{ref}", responses=answers(200, Single[InspectedRuntime]))
async def inspect_runtime(engine: EngineOf, ref: str) -> Json:
    """All that is known of a runtime, by id or name, and what its memory amounts to while it lives."""
    runtime = await engine.get_runtime(ref)
    memory = await engine.measure_memory(runtime.id)
    return {"data": {**view_local(runtime), "memory": view_local(memory) if memory else None}}


@router.get("/checkpoints/{ref}", responses=answers(200, Single[Checkpoint]))
async def inspect_checkpoint(engine: EngineOf, ref: str) -> Json:
    """All that is known of a checkpoint, by id or name."""
    return {"data": view_local(await engine.get_checkpoint(ref))}


@router.post("/checkpoints/{ref}/restore", status_code=201, responses=answers(201, Single[RuntimeView]))
async def restore_checkpoint(
    engine: EngineOf, ref: str, body: LocalRestore, idempotency_key: IdempotencyKey = None
) -> Json:
    """A new runtime; `lazy`: it runs before its memory is in."""
    return {"data": view_runtime(await engine.create_runtime(body.to_model(ref), idempotency_key=idempotency_key))}


@router.post("/runtimes/{ref}/fork", status_code=201, responses=answers(201, Listed[ForkView]))
async def fork_runtime(engine: EngineOf, ref: str, body: ForkBody) -> Json:
    """Capture once, restore once for each name; answers when all run or failed, each with its own result."""
    return {"data": [view_fork(result) for result in await engine.fork_runtime(ref, body.names)]}


@router.post("/runtimes/{ref}/rollback", responses=answers(200, Single[RuntimeView]))
async def roll_back_runtime(engine: EngineOf, ref: str, body: RollbackBody) -> Json:
    """Put a runtime back to a checkpoint of its lineage; its id and name stay."""
    return {"data": view_runtime(await engine.roll_back_runtime(ref, body.checkpoint))}


@router.get("/runtimes/{ref}/tasks", responses=answers(200, Listed[TaskInfo]))
async def list_tasks(engine: EngineOf, ref: str) -> Json:
    """The runtime's tasks, running and ended."""
    return {"data": [view_local(task) for task in await engine.list_tasks(ref)]}


@router.post("/runtimes/{ref}/tasks/{task_id}/signal", responses=answers(200, Done))
async def signal_task(engine: EngineOf, ref: str, task_id: int, body: SignalBody) -> Json:
    """A signal to the task's process group."""
    await engine.signal_task(ref, task_id, parse_signal(body.signal))
    return {"data": {}}


@router.websocket("/runtimes/{ref}/tasks/{task_id}/attach")
async def attach_task(
    socket: WebSocket,
    engine: EngineOf,
    ref: str,
    task_id: int,
    stdout_offset: Offset = None,
    stderr_offset: Offset = None,
) -> None:
    """A `started` frame first, then output from the offsets on. Losing the socket only detaches."""
    stream = await engine.attach_task(ref, task_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
    try:
        await socket.accept()
        session = Session(socket, stream, offsets=True)
        await session.announce()
        await session.run()
    finally:
        await stream.aclose()


@router.get("/runtimes/{ref}/content", responses=binary(200, OCTETS), response_class=Response)
async def read_content(engine: EngineOf, ref: str, path: PathOf) -> Response:
    """A file of any size."""
    return await respond_in_chunks(await engine.read_file(ref, path), OCTETS)


@router.put("/runtimes/{ref}/content", status_code=204, responses=empty(204), openapi_extra=takes_bytes(OCTETS))
async def write_content(engine: EngineOf, ref: str, path: PathOf, request: Request, mode: Mode = "644") -> Response:
    """A file of any size; `mode` is for a file that is new."""
    await engine.write_file(ref, path, request.stream(), mode=int(mode, 8))
    return Response(status_code=204)


@router.get("/runtimes/{ref}/archive", responses=binary(200, TAR), response_class=Response)
async def read_archive(engine: EngineOf, ref: str, path: PathOf) -> Response:
    """A file or directory as a tar stream, named by the last component of the path."""
    return await respond_in_chunks(await engine.read_archive(ref, path), TAR)


@router.put("/runtimes/{ref}/archive", status_code=204, responses=empty(204), openapi_extra=takes_bytes(TAR))
async def write_archive(engine: EngineOf, ref: str, path: PathOf, request: Request) -> Response:
    """Unpack a tar stream into the directory `path`."""
    await engine.write_archive(ref, path, request.stream())
    return Response(status_code=204)


@router.get("/images", responses=answers(200, Listed[Image]))
async def list_images(engine: EngineOf) -> Json:
    """All that is known of the base images."""
    return {"data": [view_local(image) for image in await engine.list_images()]}


@router.post("/images/build", status_code=201, responses=answers(201, Single[Image]))
async def build_image(engine: EngineOf, body: BuildBody) -> Json:
    """Make an image from the recipe of this name; answers when it is there, which can take minutes."""
    return {"data": view_local(await engine.build_image(body.name))}


@router.post("/images/import", status_code=201, responses=answers(201, Single[Image]), openapi_extra=takes_bytes(TAR))
async def import_image(engine: EngineOf, name: Annotated[str, Query(min_length=1)], request: Request) -> Json:
    """Make an image of a root file system tar, or of an OCI or docker archive."""
    return {"data": view_local(await engine.import_image(name, request.stream()))}


@router.delete("/images/{ref}", responses=answers(200, Done))
async def delete_image(engine: EngineOf, ref: str) -> Json:
    """By id or name. One that something stands on is refused."""
    await engine.delete_image(ref)
    return {"data": {}}
