"""The API's own description is valid, complete, and true: requests made from it meet no failure and no surprise."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openapi_spec_validator
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from runta.api.app import create_app
from runta.api.cloud import MISSING
from runta.api.document import METHODS, describe
from runta.models import CheckpointKind, CreateRuntime, Event, new_id

from .conftest import Service
from .plain_engine import PlainEngine

DESCRIBED = describe(create_app(PlainEngine.__new__(PlainEngine), token=None))
OPERATIONS = sorted(
    f"{method.upper()} {path}"
    for path, operations in DESCRIBED["paths"].items()
    for method in operations
    if method in METHODS
)


def not_a_failure(context: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """No 5xx, but for the 501 that says which field asks for a feature of the hosted service."""
    if response.status_code == 501:
        assert "is a feature of the hosted service" in response.json()["error"]["message"]
    else:
        assert response.status_code < 500, response.text


CHECKS = [
    not_a_failure,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
PUBLIC = [
    "",
    "GET /healthz",
    "GET /v2/runtimes",
    "POST /v2/runtimes",
    "GET /v2/runtimes/{ref}",
    "PATCH /v2/runtimes/{ref}",
    "DELETE /v2/runtimes/{ref}",
    "POST /v2/runtimes/{ref}/start",
    "POST /v2/runtimes/{ref}/pause",
    "POST /v2/runtimes/{ref}/resume",
    "POST /v2/runtimes/{ref}/stop",
    "GET /v2/runtimes/{ref}/files",
    "PUT /v2/runtimes/{ref}/files",
    "POST /v2/runtimes/{ref}/checkpoints",
    "GET /v2/checkpoints",
    "GET /v2/checkpoints/{ref}",
    "DELETE /v2/checkpoints/{ref}",
    "GET /v2/secrets",
    "GET /v2/secrets/{ref}",
    "PUT /v2/secrets/{ref}",
    "DELETE /v2/secrets/{ref}",
    "GET /v2/events",
    "GET /v2/events/{event_id}",
    "GET /v2/images",
    "GET /v2/me",
    "",
]


@schemathesis.serializer("application/x-tar")
def send_bytes(context: schemathesis.SerializationContext, value: object) -> bytes:
    """What the description calls bytes, as they are."""
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(service.socket)), base_url="http://runta") as client:
        yield client


@pytest.fixture
def furnished(service: Service) -> Service:
    """A service with something of each kind, so that reads find what to answer."""
    engine = service.engine
    service.run(engine.create_runtime(CreateRuntime(name="box")))
    service.run(engine.create_checkpoint("box", name="ck", kind=CheckpointKind.FULL))
    service.run(engine.put_secret("key", "value", cache_ttl_secs=0))
    engine.events.append(Event(id=new_id(), kind="exec", runtime_name="box", occurred_at_ms=1, duration_ms=2.5))
    return service


def test_description_is_valid(http: httpx.Client) -> None:
    answer = http.get("/openapi.json")
    assert answer.json() == DESCRIBED
    openapi_spec_validator.validate(answer.json())


def test_every_public_operation_is_described() -> None:
    assert set(filter(None, PUBLIC)) <= set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_tells_its_success_and_the_envelope(operation: str) -> None:
    method, path = operation.split()
    described = DESCRIBED["paths"][path][method.lower()]
    assert described["description"], "no word on what it does"
    assert "default" in described["responses"]
    assert any(status.startswith("2") for status in described["responses"])
    assert "422" not in described["responses"], "the framework's own error shape"


def test_what_a_local_host_lacks_is_not_described() -> None:
    assert not [path for path in DESCRIBED["paths"] if path in MISSING and not path.startswith("/v2/images")]


def test_page_for_people_names_every_operation_and_loads_nothing(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for operation in OPERATIONS:
        assert f"<code>{operation}</code>" in page.text
    assert "src=" not in page.text and "//" not in page.text.replace("http://", "")


def test_description_asks_for_the_token(service: Service) -> None:
    assert httpx.get(f"{service.url}/openapi.json", trust_env=False).status_code == 401


@pytest.mark.parametrize("operation", OPERATIONS)
def test_requests_from_the_description_meet_no_surprise(furnished: Service, operation: str) -> None:
    method, path = operation.split()
    schema = schemathesis.openapi.from_dict(DESCRIBED)
    known = {"ref": "box" if "runtimes" in path else "ck" if "checkpoints" in path else "key"}

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy())
    def drive(case: schemathesis.Case) -> None:
        if case.path_parameters and len(str(case.path_parameters.get("ref", ""))) % 2:
            case.path_parameters = {
                **case.path_parameters,
                **{name: value for name, value in known.items() if name in case.path_parameters},
            }
        response = case.call(base_url=furnished.url, headers={"Authorization": f"Bearer {furnished.token}"}, timeout=20)
        case.validate_response(response, checks=CHECKS)

    drive()
