"""Free memory of this machine, or of the container or job that the process runs in."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Files of a control group: its limits, what it uses, and the line of memory.stat with the part of
# that which the system gives up before it refuses (page cache that was not used lately).
_VERSION_2 = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_VERSION_1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes that the process can still have: what the machine has free, or less where a control
    group that the process is in, or any above it, has a limit.

    Args:
        root: of the file system, for tests.
    """
    free = [_of_the_machine(root)]
    for folder, top, (limits, usage, reclaimable) in _groups(root):
        # Limits hold for what is below them: the tightest counts.
        for group in (folder, *folder.parents):
            used = _number(group / usage)
            bounds = [bound for name in limits if (bound := _number(group / name)) is not None]
            if used is not None and bounds:
                used -= min(used, _line(group / "memory.stat", reclaimable))
                free.append(max(0, min(bounds) - used))
            if group == top:
                break
    return min(free)


def _of_the_machine(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":") for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(root: Path) -> Iterator[tuple[Path, Path, tuple[tuple[str, ...], str, str]]]:
    """The folder of each control group of this process that may limit memory, the folder where its
    hierarchy begins, and its files."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in mounts:
        # man 5 proc_pid_mountinfo: ID parent device ROOT PLACE options ... - KIND source OPTIONS
        before, _, after = line.partition(" - ")
        try:
            mounted, place = before.split()[3:5]
            kind, _, options = after.split(None, 2)
        except ValueError:
            continue
        if kind == "cgroup2":
            files, wanted = _VERSION_2, ""
        elif kind == "cgroup" and "memory" in options.split(","):
            files, wanted = _VERSION_1, "memory"
        else:
            continue
        top = root / place.lstrip("/")
        for group in groups:
            _, controllers, path = group.split(":", 2)
            if wanted not in controllers.split(",") or (not wanted and controllers):
                continue
            # In a container the path may be one of the host's, of which the mount is a part.
            inside = PurePosixPath(path)
            if inside.is_relative_to(mounted):
                inside = inside.relative_to(mounted)
            folder = top / str(inside).lstrip("/")
            yield (folder if folder.is_dir() else top), top, files


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as "max" for no limit."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _line(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return int(dict(line.split() for line in lines)[name])
    except (OSError, KeyError, ValueError):
        return 0
