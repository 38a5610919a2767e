"""The life of runtimes through the blocking SDK."""

from __future__ import annotations

import pytest

from runta import (
    ApiError,
    CreateRuntimeResourceRequests,
    CreateRuntimeResources,
    EgressMode,
    EgressPolicy,
    ExecutionError,
    IngressSpec,
    PatchRuntimeResourceRequests,
    PatchRuntimeResources,
    RuntimeResourceLimits,
    RuntimeStatus,
)


def test_health(client):
    assert client.health() is True


def test_create_find_list_delete(client, make, name):
    made = make(
        name,
        vcpus=2,
        memory_mib=256,
        memory_max_mib=512,
        ingress_specs=[IngressSpec(protocol="http", runtime_port=8080)],
        egress_policy=EgressPolicy(mode=EgressMode.ALLOWLIST, allowed_hosts=["Example.COM."]),
    )
    info = made.cached_info
    assert (info.display_name, info.status) == (name, RuntimeStatus.RUNNING)
    assert (info.resources.requests.memory_mib, info.resources.requests.vcpus) == (256, 2)
    assert info.resources.limits.memory_mib == 512
    assert [(spec.protocol, spec.runtime_port) for spec in info.ingress_specs] == [("http", 8080)]
    assert (info.egress_policy.mode, info.egress_policy.allowed_hosts) == (EgressMode.ALLOWLIST, ["example.com"])
    assert client.runtimes.get(name).id == client.runtimes.get(made.id).id == made.id
    assert name in [runtime.name for runtime in client.runtimes.list()]
    assert name in [runtime.name for runtime in client.runtimes.list(status="running")]
    assert name not in [runtime.name for runtime in client.runtimes.list(status=["paused", "shutdown"])]
    made.delete()
    made.delete()
    with pytest.raises(ApiError) as gone:
        client.runtimes.get(made.id)
    assert (gone.value.status_code, gone.value.code) == (404, "not_found")


def test_resources_as_an_object(make, name):
    resources = CreateRuntimeResources(
        requests=CreateRuntimeResourceRequests(memory_mib=300, vcpus=1), limits=RuntimeResourceLimits(memory_mib=400)
    )
    info = make(name, resources=resources).cached_info
    assert (info.resources.requests.memory_mib, info.resources.limits.memory_mib) == (300, 400)


def test_name_is_invented_and_taken_once(client, make, name):
    assert make().name
    make(name)
    with pytest.raises(ApiError) as taken:
        client.runtimes.create(name)
    assert (taken.value.status_code, taken.value.code) == (409, "already_exists")


def test_pause_resume_shutdown_boot(client, make, name):
    box = make(name)
    box.files.write("/root/kept", "kept")
    box.exec("setsid sleep 600 >/dev/null 2>&1 </dev/null & until pgrep -fc '^sleep 600'; do sleep 0.02; done")
    box.pause()
    assert box.status() is RuntimeStatus.PAUSED
    box.pause()
    with pytest.raises(ApiError) as refused:
        box.files.read("/root/kept")
    assert (refused.value.status_code, refused.value.code) == (409, "failed_precondition")
    with pytest.raises((ExecutionError, ApiError), match=r"409|not running"):
        box.exec("true")
    assert [runtime.name for runtime in client.runtimes.list(status="paused") if runtime.id == box.id] == [name]
    box.resume()
    assert box.exec("pgrep -fc '^sleep 600'").stdout_text.strip() == "1"
    box.shutdown()
    assert box.status() is RuntimeStatus.SHUTDOWN
    box.shutdown()
    box.boot()
    assert box.exec("cat /root/kept; pgrep -fc '^sleep 600'").stdout_text == "kept0\n"


def test_memory_changes_while_it_runs(make, name):
    box = make(name, memory_mib=128)
    hog = "import sys; x = bytearray(200 << 20); print(len(x) >> 20)"
    tight = box.exec(["perl", "-e", "my $x = 'x' x (200 << 20); print length($x) >> 20"])
    assert tight.exit_code != 0, hog
    info = box.resize_memory(512)
    assert (info.resources.requests.memory_mib, info.resources.limits.memory_mib) == (512, 512)
    wide = box.exec(["perl", "-e", "my $x = 'x' x (200 << 20); print length($x) >> 20"])
    assert (wide.exit_code, wide.stdout_text) == (0, "200")
    info = box.update_resources(
        PatchRuntimeResources(
            requests=PatchRuntimeResourceRequests(memory_mib=200), limits=RuntimeResourceLimits(memory_mib=600)
        )
    )
    assert (info.resources.requests.memory_mib, info.resources.limits.memory_mib) == (200, 600)


def test_egress_round_trips_and_refuses_a_url(make, name):
    box = make(name)
    assert (box.egress.get().mode, box.egress.get().denied_hosts) == (EgressMode.DENYLIST, [])
    hosts = ["*.example.com", "10.0.0.0/8", "example.org"]
    box.egress.set_policy(EgressPolicy(mode=EgressMode.DENYLIST, denied_hosts=hosts))
    assert box.egress.get().denied_hosts == sorted(hosts)
    with pytest.raises(ApiError, match="invalid egress host") as refused:
        box.egress.set_policy(EgressPolicy(mode=EgressMode.ALLOWLIST, allowed_hosts=["https://example.com/x"]))
    assert refused.value.status_code == 422
    assert box.egress.get().denied_hosts == sorted(hosts)


def test_idle_runtime_is_suspended_and_wakes_at_the_next_exec(make, name):
    box = make(name, idle_suspend_after_secs=1)
    box.exec("echo before > /tmp/state")
    for _ in range(200):
        if box.status() is RuntimeStatus.SUSPENDED:
            break
    else:
        import time

        deadline = time.monotonic() + 20
        while box.status() is not RuntimeStatus.SUSPENDED and time.monotonic() < deadline:
            time.sleep(0.1)
    assert box.status() is RuntimeStatus.SUSPENDED
    assert box.exec("cat /tmp/state").stdout_text == "before\n"
