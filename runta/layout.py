"""Where things are: every path from one root. Never touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RuntimeDir:
    """One runtime's directory, `runtimes/<id>`, mode 0711: runc walks it as the sandbox's unprivileged root."""

    root: Path

    @property
    def upper(self) -> Path:
        """Overlay upper dir, shifted ids."""
        return self.root / "upper"

    @property
    def work(self) -> Path:
        """Overlay work dir, on the same file system as upper."""
        return self.root / "work"

    @property
    def merged(self) -> Path:
        """The mounted overlay: the sandbox's rootfs."""
        return self.root / "merged"

    @property
    def lower(self) -> Path:
        """Mount points of the idmapped lower dirs, used only while the overlay is being mounted."""
        return self.root / "lower"

    @property
    def bundle(self) -> Path:
        """runc's bundle: config.json, criu.conf."""
        return self.root / "bundle"

    @property
    def criu_conf(self) -> Path:
        """CRIU options of this runtime, named by the annotation org.criu.config."""
        return self.bundle / "criu.conf"

    @property
    def hook_fifo(self) -> Path:
        """Where the createRuntime hook gets its answer."""
        return self.bundle / "hook.fifo"

    @property
    def run(self) -> Path:
        """Bind-mounted at /run/runta inside: the guest init's binary and socket."""
        return self.root / "run"

    @property
    def socket(self) -> Path:
        """The guest init's Unix socket."""
        return self.run / "init.sock"

    @property
    def log(self) -> Path:
        """Logs of runc, CRIU and detached tasks."""
        return self.root / "log"

    @property
    def captured(self) -> Path:
        """What the runtime's previous capture took, for the next one."""
        return self.root / "captured.json"

    @property
    def dump(self) -> Path:
        """The dump this runtime is restored from: hard links into the checkpoint, only while restoring,
        which a lazy restore does until all memory is in."""
        return self.root / "dump"


@dataclass(frozen=True, slots=True)
class CheckpointDir:
    """One checkpoint's directory, `checkpoints/<id>`, mode 0700."""

    root: Path

    @property
    def manifest(self) -> Path:
        """Written last: without it there is no checkpoint."""
        return self.root / "manifest.json"

    @property
    def tarball(self) -> Path:
        """The captured upper dir, plain ids."""
        return self.root / "upper.tar.zst"

    @property
    def dump(self) -> Path:
        """CRIU's image files."""
        return self.root / "dump"

    @property
    def log(self) -> Path:
        """CRIU's logs and stats of the dump."""
        return self.root / "log"


@dataclass(frozen=True, slots=True)
class Layout:
    """The state directory and the run directory."""

    state_dir: Path
    run_dir: Path

    @property
    def database(self) -> Path:
        return self.state_dir / "runta.db"

    @property
    def events(self) -> Path:
        """What happened, apart from the records: it may be lost without harm."""
        return self.state_dir / "events.db"

    @property
    def secrets_key(self) -> Path:
        """What the secrets' values are encrypted with, 0600."""
        return self.state_dir / "secrets.key"

    @property
    def token(self) -> Path:
        """Bearer token of the TCP listener, 0600."""
        return self.state_dir / "token"

    @property
    def lock(self) -> Path:
        """Held by the one service that owns this state directory."""
        return self.state_dir / "lock"

    @property
    def images(self) -> Path:
        return self.state_dir / "images"

    @property
    def inits(self) -> Path:
        return self.state_dir / "init"

    @property
    def layers(self) -> Path:
        return self.state_dir / "layers"

    @property
    def checkpoints(self) -> Path:
        return self.state_dir / "checkpoints"

    @property
    def runtimes(self) -> Path:
        return self.state_dir / "runtimes"

    @property
    def replaced(self) -> Path:
        """Directories of runtimes that are being rolled back, `<id>@<revision>`."""
        return self.state_dir / "replaced"

    @property
    def staging(self) -> Path:
        return self.state_dir / "staging"

    @property
    def log(self) -> Path:
        """The service's own log, when it was started in the background."""
        return self.state_dir / "serve.log"

    @property
    def socket(self) -> Path:
        return self.run_dir / "runta.sock"

    @property
    def runc_root(self) -> Path:
        """runc's state of our runtimes, apart from other software's."""
        return self.run_dir / "runc"

    @property
    def network_fifo(self) -> Path:
        """Where the createRuntime hook asks for the network."""
        return self.run_dir / "network.fifo"

    @property
    def empty(self) -> Path:
        """A directory with nothing in it, for what a runtime is not to see."""
        return self.state_dir / "empty"

    def image(self, image_id: str) -> Path:
        """An image's directory: `rootfs/` and `image.json`."""
        return self.images / image_id

    def image_rootfs(self, image_id: str) -> Path:
        return self.images / image_id / "rootfs"

    def init(self, digest: str) -> Path:
        """A guest init binary, immutable."""
        return self.inits / digest / "runta-init"

    def layer(self, layer_id: str) -> Path:
        """A captured upper dir, plain ids, immutable."""
        return self.layers / layer_id

    def checkpoint(self, checkpoint_id: str) -> CheckpointDir:
        return CheckpointDir(self.checkpoints / checkpoint_id)

    def runtime(self, runtime_id: str) -> RuntimeDir:
        return RuntimeDir(self.runtimes / runtime_id)
