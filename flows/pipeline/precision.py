"""Whether a processor trains slowly in the precision that was asked for."""

from pathlib import Path

from wbc_model.params import Params


def slow_precision(
    params: Params,
    how: str = "wbc retrain --set",
    cpuinfo: Path = Path("/proc/cpuinfo"),
    gpu: Path = Path("/proc/driver/nvidia"),
) -> str:
    """A line where training is to be in bfloat16 on a processor without instructions for it; empty where it is not, or where
    the machine does not say. `how` is what sets a parameter."""
    if params.size.precision != "bf16-mixed" or gpu.exists() or not cpuinfo.exists():
        return ""
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    if not flags or "bf16" in flags:
        return ""
    exact = f"{how} presets.{params.preset}.precision=32-true"
    return f"this processor has no bf16 instructions, and trains some ten times as fast with `{exact}`"
