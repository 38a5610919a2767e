"""What a handler gets from the application it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from runta.engine.port import Engine


@dataclass(slots=True)
class House:
    """The engine, and whether the service is on its way out: a socket lost to that ends no task."""

    engine: Engine
    leaving: bool = False


async def _get_house(connection: HTTPConnection) -> House:
    house: House = connection.app.state.house
    return house


async def _get_engine(connection: HTTPConnection) -> Engine:
    return (await _get_house(connection)).engine


HouseOf = Annotated[House, Depends(_get_house)]
EngineOf = Annotated[Engine, Depends(_get_engine)]
