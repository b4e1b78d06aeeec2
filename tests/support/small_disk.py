"""A disk of a few megabytes that can be filled: a file system in memory that nobody else sees."""

from __future__ import annotations

import subprocess
from pathlib import Path

from speeds import lacking, require


class SmallDisk:
    """Mounted in a mount namespace of its own, which a process holds until ``close``."""

    def __init__(self, path: Path, *, megabytes: int = 16) -> None:
        """``path`` is a directory; what is started with ``prefix`` before its command sees the disk there."""
        require("nsenter")
        self.path = path
        mounted = f"mount -t tmpfs -o size={megabytes}m none {path} && echo mounted && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            self.close()
            lacking("a mount namespace", "run as root, or let users make namespaces (unprivileged_userns_clone)")
        target = ("--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials")
        self.prefix = ("nsenter", *target)

    def fill(self) -> None:
        """Leave no byte: first with large writes, then with the smallest."""
        for size in ("64k", "1"):
            command = ["dd", "if=/dev/zero", f"of={self.path}/filling-{size}", f"bs={size}"]
            subprocess.run([*self.prefix, *command], capture_output=True, check=False, timeout=60)

    def free(self) -> None:
        """Remove what ``fill`` has put there."""
        files = [f"{self.path}/filling-{size}" for size in ("64k", "1")]
        subprocess.run([*self.prefix, "rm", "-f", *files], check=True, timeout=60)

    def close(self) -> None:
        """Let it go, with all that is on it."""
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()
