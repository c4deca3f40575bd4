"""This process's memory, as the benchmarks tell it (proc(5))."""

from __future__ import annotations


def memory(field: str = "VmRSS") -> int:
    """In bytes; VmHWM is the most that it had since `forget_peak`."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
