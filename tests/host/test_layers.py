"""Chains of layers: shared, flattened before they get long, and gone when nobody stands on them."""

from __future__ import annotations

import json

from runta import Runta
from runta.client.local import inspect_runtime
from runta.store.layers import MAX_CHAIN
from tests.host.conftest import House


def chain_of(runta: Runta, ref: str) -> list[str]:
    return list(runta.perform(inspect_runtime(ref))["spec"]["layers"])


def test_a_long_lineage_stays_short(runta: Runta, house: House) -> None:
    """Each generation adds a file, changes one of all, and removes what its grandparent added."""
    box = runta.runtimes.create("g0")
    box.exec("mkdir /srv/d; echo 0 > /srv/d/f0; echo 0 > /srv/last; ln /srv/d/f0 /srv/twin; mv /etc/skel /etc/skel2")
    generations = MAX_CHAIN + 4
    for number in range(1, generations + 1):
        fork = box.fork(name=f"g{number}")[0].result()
        box.delete()
        box = fork
        box.exec(f"echo {number} > /srv/d/f{number}; echo {number} > /srv/last; rm -f /srv/d/f{number - 2}")
        assert len(chain_of(runta, box.id)) <= MAX_CHAIN + 1
    assert box.exec(
        "cat /srv/last; ls /srv/d | sort -V | tr '\\n' ' '; cat /srv/twin; ls -d /etc/skel*"
    ).stdout_text == (f"{generations}\nf{generations - 1} f{generations} 0\n/etc/skel2\n")
    assert {entry.name for entry in house.layout.layers.iterdir()} == set(chain_of(runta, box.id))


def test_a_flat_layer_is_made_once(runta: Runta, house: House) -> None:
    box = runta.runtimes.create("g0")
    for number in range(1, MAX_CHAIN + 2):
        fork = box.fork(name=f"g{number}")[0].result()
        box.delete()
        box = fork
    assert len(chain_of(runta, box.id)) == MAX_CHAIN + 1
    checkpoint = box.checkpoints.create(name="ck")
    made = [runta.runtimes.create(f"r{number}", checkpoint_id=checkpoint.id) for number in range(2)]
    (fork,) = (one.result() for one in box.fork(name="f"))
    chains = [chain_of(runta, one.id) for one in (*made, fork)]
    assert {len(chain) for chain in chains} == {2}
    assert len({chain[-1] for chain in chains}) == 1
    box.delete()
    runta.checkpoints.delete("ck")
    assert all(one.exec("true").exit_code == 0 for one in (*made, fork))


def test_the_root_directory_keeps_what_it_is(runta: Runta, house: House) -> None:
    """The overlay shows the upper dir's own mode and attributes of the root, whatever lies below."""
    box = runta.runtimes.create("box")
    box.exec("chmod 0711 /; setfacl -m u:33:rx / 2>/dev/null || true")
    before = box.exec("stat -c '%a %u %g %y' /").stdout_text
    fork = box.fork(name="fork")[0].result()
    grandchild = fork.fork(name="grandchild")[0].result()
    assert grandchild.exec("stat -c '%a %u %g %y' /").stdout_text == before


def test_a_second_checkpoint_shares_what_did_not_change(runta: Runta, house: House) -> None:
    box = runta.runtimes.create("box")
    box.exec("head -c 30000000 /dev/urandom > /srv/big; mkdir /srv/d; cd /srv/d; seq 500 | xargs touch")
    first = box.checkpoints.create(name="one")
    box.exec("echo changed > /srv/small")
    second = box.checkpoints.create(name="two")
    forks = [runta.runtimes.create(f"f{one.display_name}", checkpoint_id=one.id) for one in (first, second)]
    layers = [house.layout.layer(chain_of(runta, fork.id)[0]) / "tree" for fork in forks]
    assert (layers[0] / "srv/big").samefile(layers[1] / "srv/big")
    box.delete()
    forks[0].delete()
    runta.checkpoints.delete("one")
    digest = forks[1].exec("sha256sum < /srv/big; cat /srv/small; ls /srv/d | wc -l").stdout_text.split("\n")
    assert digest[1:3] == ["changed", "500"]
    forks[1].exec("echo x >> /srv/big")
    again = runta.runtimes.create("again", checkpoint_id=second.id)
    assert again.exec("sha256sum < /srv/big").stdout_text.split("\n")[0] == digest[0]


def test_links_of_the_programs_lead_nowhere_on_the_host(runta: Runta, house: House) -> None:
    """A directory of hard-linked files becomes a link that leads out of the tree, in the next generation."""
    box = runta.runtimes.create("box")
    box.exec("mkdir -p /x/upper; echo f > /x/upper/f; ln /x/upper/f /x/o; echo t > /x/token; ln /x/token /x/p")
    fork = box.fork(name="fork")[0].result()
    fork.exec("echo more >> /x/o; echo more >> /x/p; rm -r /x; ln -s .. /x; mkfifo /f; ln -s ../../.. /y")
    before = {entry.name for entry in house.layout.state_dir.iterdir()}
    checkpoint = fork.checkpoints.create(name="ck")
    assert {entry.name for entry in house.layout.state_dir.iterdir()} == before
    again = runta.runtimes.create("again", checkpoint_id=checkpoint.id)
    assert again.exec("readlink /x; ls -d /f; ls /x/ | head -1").stdout_text.startswith("..\n/f\n")


def test_sockets_are_in_the_layer_and_named_by_the_manifest(runta: Runta, house: House) -> None:
    """A tar holds no sockets."""
    box = runta.runtimes.create("box")
    box.exec("python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('/srv/s')\"")
    checkpoint = box.checkpoints.create(name="ck")
    manifest = json.loads(house.layout.checkpoint(checkpoint.id).manifest.read_text())
    assert manifest["sockets"] == ["srv/s"]
    assert runta.runtimes.create("fork", checkpoint_id=checkpoint.id).exec("test -S /srv/s").exit_code == 0
