"""How much memory this process may still take."""

from pathlib import Path


def available_memory():
    """Bytes of main memory that are free for this process, as the system and its container see it; None if unknown."""
    found = [value for value in (_of_system(), _of_container()) if value is not None]
    return min(found, default=None)


def _of_system():
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_container():
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return int(limit) - int(used) if limit.isdecimal() and used.isdecimal() else None  # "max": no limit


def _text(path):
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
