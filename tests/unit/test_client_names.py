"""The public names: what the official SDK has, in order, and free to import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import runta

OFFICIAL = [
    "ApiError",
    "AsyncCheckpointManager",
    "AsyncEgressManager",
    "AsyncFileManager",
    "AsyncRunta",
    "AsyncRuntime",
    "AsyncRuntimeCheckpointManager",
    "AsyncRuntimeManager",
    "AsyncSecretManager",
    "CheckpointInfo",
    "CheckpointManager",
    "CheckpointState",
    "CommandError",
    "CommandResult",
    "ConfigError",
    "CreateRuntimeResourceRequests",
    "CreateRuntimeResources",
    "EgressManager",
    "EgressMode",
    "EgressPolicy",
    "ExecutionError",
    "FileManager",
    "IngressSpec",
    "PatchRuntimeResourceRequests",
    "PatchRuntimeResources",
    "Runta",
    "RuntaError",
    "Runtime",
    "RuntimeCheckpointManager",
    "RuntimeInfo",
    "RuntimeManager",
    "RuntimeResourceLimits",
    "RuntimeResourceRequests",
    "RuntimeResources",
    "RuntimeStatus",
    "SecretInfo",
    "SecretManager",
]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_names_are_sorted_and_the_official_ones():
    assert sorted(runta.__all__) == runta.__all__
    assert set(OFFICIAL) <= set(runta.__all__)


def test_every_name_is_there_and_listed():
    for name in runta.__all__:
        found = getattr(runta, name)
        assert found.__name__ == name
    assert set(runta.__all__) <= set(dir(runta))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Nonsense"):
        runta.Nonsense  # noqa: B018


def test_importing_the_package_imports_no_library():
    assert not {"httpx", "typer", "websockets", "asyncio", "http.client"} & loaded_after("import runta")


def test_the_blocking_client_does_without_httpx_and_the_cli_without_the_client():
    assert "httpx" not in loaded_after("from runta import Runta")
    assert not {"runta.client.sync", "runta.kernel"} & loaded_after("import runta.cli.app")


def test_sync_and_async_have_the_same_methods():
    for name in ("Runta", "Runtime", "RuntimeManager"):
        assert_twins(name)
    for name in ("FileManager", "CheckpointManager", "RuntimeCheckpointManager", "EgressManager", "SecretManager"):
        assert_twins(name)


def assert_twins(name: str) -> None:
    ours, theirs = getattr(runta, name), getattr(runta, f"Async{name}")
    public = {word for word in dir(ours) if not word.startswith("_")}
    assert public <= {word for word in dir(theirs) if not word.startswith("_")}


def test_version():
    assert importlib.import_module("runta").__version__
    done = subprocess.run([sys.executable, "-m", "runta", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"runta {runta.__version__}\n"
