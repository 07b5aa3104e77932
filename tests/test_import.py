"""Does importing the package change anything of the user's process?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Runs in a process of its own: argv is the package, a file for the answer, a file for what is
# printed. The dependencies come first, for what they change is not the package's doing.
PROBE = r"""
import decimal, faulthandler, gc, importlib, json, locale, logging, os, pkgutil, random, signal
import sys, threading, warnings
package, answer, printed = sys.argv[1:]
import numpy, rich.console, torch, torch.fx.experimental.proxy_tensor, typer


def state():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "number of interop threads": torch.get_num_interop_threads(),
        "deterministic algorithms": torch.get_deterministic_debug_mode(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "matmul flags": [
            cuda.matmul.allow_tf32,
            cuda.matmul.allow_fp16_reduced_precision_reduction,
            cuda.matmul.allow_bf16_reduced_precision_reduction,
        ],
        "cudnn flags": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "mkldnn": torch.backends.mkldnn.enabled,
        "attention kernels": [
            cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
        ],
        "gradient mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "autocast": [
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            torch.is_autocast_cache_enabled(),
        ],
        "anomaly mode": torch.is_anomaly_enabled(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": numpy.random.get_state(legacy=False),
        "python random state": random.getstate(),
        "warning filters": warnings.filters[:],
        "warning output": [warnings.showwarning, torch.is_warn_always_enabled()],
        "print options": [vars(torch._tensor_str.PRINT_OPTS), numpy.get_printoptions()],
        "numpy errors": numpy.geterr(),
        "decimal context": decimal.getcontext(),
        "environment variables": dict(os.environ),
        "working directory": os.getcwd(),
        "import path": sys.path[:],
        "hooks": [sys.excepthook, sys.displayhook, threading.excepthook, sys.gettrace()],
        "garbage collector": [gc.isenabled(), gc.get_threshold()],
        "recursion limit": sys.getrecursionlimit(),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "fault handler": faulthandler.is_enabled(),
        "locale": locale.setlocale(locale.LC_ALL),
        "root logger": [logging.root.level, logging.root.handlers[:], logging.root.disabled],
        "running threads": threading.active_count(),
    }


before = {name: repr(value) for name, value in state().items()}
file = os.open(printed, os.O_WRONLY | os.O_CREAT)
kept = os.dup(1), os.dup(2)
os.dup2(file, 1), os.dup2(file, 2)
try:
    modules = [importlib.import_module(package)]
    for module in pkgutil.walk_packages(modules[0].__path__, package + "."):
        if not module.name.endswith("__main__"):
            modules.append(importlib.import_module(module.name))
finally:
    sys.stdout.flush(), sys.stderr.flush()
    os.dup2(kept[0], 1), os.dup2(kept[1], 2)
after = {name: repr(value) for name, value in state().items()}
changed = [name for name in before if before[name] != after[name]]
if os.path.getsize(printed):
    changed.append("printed output")
with open(answer, "w") as out:
    json.dump({"modules": len(modules), "changed": changed, "watched": list(before)}, out)
"""


def import_everything(package: str, *, folder: Path, tmp_path: Path) -> dict:
    """Import a package and all its modules, and say what that changed."""
    answer, printed = tmp_path / "answer.json", tmp_path / "printed.txt"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, package, str(answer), str(printed)],
        env=dict(os.environ, PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        pytest.fail(finished.stderr)
    return json.loads(answer.read_text())


def test_importing_the_package_changes_nothing(tmp_path: Path) -> None:
    result = import_everything("numgeom", folder=ROOT / "src", tmp_path=tmp_path)
    assert result["changed"] == []
    files = [path for path in (ROOT / "src").rglob("*.py") if path.stem != "__main__"]
    assert result["modules"] == len(files)


# One statement for each thing that is watched, executed in this order.
EFFECTS = {
    "torch random state": "torch.rand(1)",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "number of threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "number of interop threads": "torch.set_num_interop_threads(7)",
    "deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "matmul flags": "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False",
    "cudnn flags": "torch.backends.cudnn.benchmark = True",
    "mkldnn": "torch.backends.mkldnn.set_flags(False)",
    "attention kernels": "torch.backends.cuda.enable_flash_sdp(False)",
    "gradient mode": "torch.set_grad_enabled(False)",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "anomaly mode": "torch.autograd.set_detect_anomaly(True)",
    "dispatch modes": "torch.utils.flop_counter.FlopCounterMode(display=False).__enter__()",
    "function modes": "torch.overrides.BaseTorchFunctionMode().__enter__()",
    "numpy random state": "numpy.random.seed(7)",
    "python random state": "random.random()",
    "warning filters": "warnings.simplefilter('ignore')",
    "warning output": "warnings.showwarning = print",
    "print options": "torch.set_printoptions(precision=3)",
    "numpy errors": "numpy.seterr(all='ignore')",
    "decimal context": "decimal.getcontext().prec = 50",
    "environment variables": "os.environ['OMP_NUM_THREADS'] = '7'",
    "working directory": "os.chdir('/')",
    "import path": "sys.path.append('/nowhere')",
    "hooks": "sys.excepthook = print",
    "garbage collector": "gc.disable()",
    "recursion limit": "sys.setrecursionlimit(4321)",
    "signal handlers": "signal.signal(signal.SIGINT, signal.SIG_DFL)",
    "fault handler": "faulthandler.enable()",
    "locale": "locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
    "root logger": "logging.basicConfig()",
    "running threads": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "printed output": "print('hello')",
}
IMPORTS = """
import decimal, faulthandler, gc, locale, logging, os, random, signal, sys, threading, time
import warnings
import numpy, torch, torch.overrides, torch.utils.flop_counter
"""


def test_every_planted_effect_is_found(tmp_path: Path) -> None:
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "effects.py").write_text(IMPORTS + "\n".join(EFFECTS.values()))
    result = import_everything("planted", folder=tmp_path, tmp_path=tmp_path)
    assert set(result["changed"]) == set(EFFECTS) == {*result["watched"], "printed output"}
    assert result["modules"] == 2
