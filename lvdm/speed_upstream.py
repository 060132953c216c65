"""Times a step of the UNet in a checkout of LVDM or VideoCrafter: `python speed_upstream.py CHECKOUT TASK_AS_JSON`.

A program of its own, since the checkout's package is called `lvdm`, too. It uses nothing of this repository.
"""

import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main(checkout: str, task: dict[str, Any]) -> None:
    """Print {"ms", "peak_gb"} as the last line; end with one sentence where the checkout cannot be used."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [checkout, *(place for place in sys.path if place not in (here, str(Path(here).parent), ""))]
    found = sorted(Path(checkout).glob("lvdm/**/openaimodel3d.py"))
    if not found:
        raise SystemExit(f"{checkout} has no lvdm/**/openaimodel3d.py: give a checkout of LVDM or VideoCrafter")
    name = ".".join(found[0].relative_to(checkout).with_suffix("").parts)
    device, cuda = torch.device(task["device"]), torch.device(task["device"]).type == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    try:
        network = importlib.import_module(name).UNetModel
    except ModuleNotFoundError as error:
        raise SystemExit(f"its code needs the package {error.name}, which is not installed: install it") from error
    try:
        unet = network(**task["params"]).to(device, dtype).eval()
    except TypeError as error:
        raise SystemExit(
            f"its UNet does not take this model's parameters ({error}): give its family's checkout"
        ) from error
    x, context = (torch.randn(task[key], device=device, dtype=dtype) for key in ("shape", "context"))
    timesteps = torch.full((len(x),), 500, device=device)
    options = {} if task["fps"] is None else {"fps": torch.full((len(x),), task["fps"], device=device)}
    seconds = []
    with torch.no_grad(), torch.autocast(device.type, torch.float16, enabled=cuda):
        for _ in range(task["calls"] + 3):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            unet(x, timesteps, context=context, **options)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    print(json.dumps({"ms": 1e3 * statistics.median(seconds[3:]), "peak_gb": round(peak, 2)}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
