"""vggt_jax.pipeline.host_memory: what control groups leave, of both versions, nested and in containers."""

import pytest

from vggt_jax.pipeline.host_memory import free_host_memory

_MIB = 2**20
_V2 = "30 23 0:26 {root} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
_V1 = "31 23 0:27 {root} {place} rw shared:5 - cgroup cgroup rw,memory\n"


def machine(folder, groups, mounts, files):
    """A file system with 1000 MiB free."""
    texts = {
        "proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 1024000 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/vda rw\n" + mounts,
        **files,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(text))
    return folder


def version_2(limit, used, cache=0):
    return {
        "memory.max": limit if isinstance(limit, str) else limit * _MIB,
        "memory.current": used * _MIB,
        "memory.stat": f"anon 1\ninactive_file {cache * _MIB}\n",
    }


def version_1(limit, used):
    return {
        "memory.limit_in_bytes": limit * _MIB,
        "memory.usage_in_bytes": used * _MIB,
        "memory.stat": "cache 1\ntotal_inactive_file 0\n",
    }


def below(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


CG = "sys/fs/cgroup"
CASES = {
    "none": ("", "", {}, 1000),
    "no limit": ("0::/\n", _V2.format(root="/", place="/" + CG), below(CG, version_2("max", 7)), 1000),
    "a container": (
        "0::/\n", _V2.format(root="/", place="/" + CG), below(CG, version_2(300, 100)), 200,
    ),
    "cache counts as free": (
        "0::/\n", _V2.format(root="/", place="/" + CG), below(CG, version_2(300, 290, 90)), 100,
    ),
    "more than its limit": (
        "0::/\n", _V2.format(root="/", place="/" + CG), below(CG, version_2(100, 120)), 0,
    ),
    "nested, the inner is tighter": (
        "0::/a/b\n", _V2.format(root="/", place="/" + CG),
        below(f"{CG}/a", version_2(500, 50)) | below(f"{CG}/a/b", version_2(90, 20)), 70,
    ),
    "nested, the outer is tighter": (
        "0::/a/b\n", _V2.format(root="/", place="/" + CG),
        below(f"{CG}/a", version_2(100, 70)) | below(f"{CG}/a/b", version_2("max", 20)), 30,
    ),
    "version 1, with the path of the host": (
        "9:cpu:/x\n5:memory:/docker/17\n", _V1.format(root="/docker/17", place=f"/{CG}/memory"),
        below(f"{CG}/memory", version_1(400, 60)), 340,
    ),
    "version 1, a job": (
        "5:cpu,memory:/slurm/job\n", _V1.format(root="/", place=f"/{CG}/memory"),
        below(f"{CG}/memory/slurm", version_1(2**40, 10))
        | below(f"{CG}/memory/slurm/job", version_1(64, 4)), 60,
    ),
    "both, as systemd mounts them": (
        "5:memory:/m\n0::/u\n",
        _V1.format(root="/", place=f"/{CG}/memory") + _V2.format(root="/", place=f"/{CG}/unified"),
        below(f"{CG}/memory/m", version_1(80, 30)), 50,
    ),
    "a path that is not mounted": (
        "0::/../elsewhere\n", _V2.format(root="/", place="/" + CG), below(CG, version_2(50, 10)), 40,
    ),
    "nonsense": ("x\n0::\n", "1 2\n", {}, 1000),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_free_memory(tmp_path, case):
    groups, mounts, files, expected = CASES[case]
    assert free_host_memory(machine(tmp_path, groups, mounts, files)) == expected * _MIB
