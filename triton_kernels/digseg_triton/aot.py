"""Compile the kernels ahead of time, without a GPU, and read what came out: registers, spills, shared memory, loads.

`python -m digseg_triton.aot` prints the table and exits with 1 if any kernel breaks a limit; the same check is a test.
Needs triton (its bundled ptxas and cuobjdump), no CUDA toolkit and no driver.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .aot_cases import Case, cases

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
SHARED_LIMIT = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may ask for
PTX_VERSION = {87: 85}  # JetPack 6 carries CUDA 12.6
STACK_LIMIT = 16  # bytes per thread: a pointer or two; Triton 3.9 puts 8 of text_injection there for sm_100
HIDDEN_PARAMETERS = 2  # scratch pointers Triton appends; null, as both scratch sizes must be 0
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses. `stack` is bytes per thread: spills, or arrays the compiler could not keep."""

    case: str
    arch: int
    registers: int
    stack: int
    shared: int
    wide_loads: int
    narrow_loads: int
    wide_stores: int
    parameters: int
    declared: int
    scratch: int
    ptx: str


def compile_case(case: Case, arch: int, unhinted: Collection[str] = ()) -> Any:
    """Compile for `arch`; the parameters in `unhinted` lose their divisibility hint, to show that the limits notice."""
    kernel = case.kernel()
    index = {name: i for i, name in enumerate(kernel.arg_names)}
    aligned = [name for name in case.hinted() if name not in unhinted]
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in case.constants else case.signature[name] for name in index},
        constexprs={(index[name],): value for name, value in case.constants.items()},
        attrs={(index[name],): _ALIGNED for name in aligned},
    )
    options: dict[str, Any] = {
        "num_warps": case.config.warps,
        "num_stages": case.config.stages,
        "enable_fp_fusion": True,
    }
    if arch in PTX_VERSION:
        options["ptx_version"] = PTX_VERSION[arch]
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump printed no resource usage; it said: {text[:200]!r}")
    return int(found[-1][0]), int(found[-1][1])


def _loads_and_stores(ptx: str) -> tuple[int, int, int]:
    """How often the program text has 16-byte loads or copies, loads of 2 or 4 bytes, and 16-byte stores."""
    wide = re.findall(r"ld\.global[\w:.]*\.v4\.b32|ld\.global[\w:.]*\.v2\.b64", ptx)
    copies = re.findall(r"cp\.async\.c[ag][\w:.]* \[[^\]]*\], ?\[[^\]]*\], ?0x10", ptx)
    narrow = re.findall(r"ld\.global(?:\.\w+)*\.b(?:16|32) ", ptx)
    narrow = [text for text in narrow if ".v4" not in text and ".v2" not in text]
    stores = re.findall(r"st\.global[\w:.]*\.v4\.b32|st\.global[\w:.]*\.v2\.b64", ptx)
    return len(wide) + len(copies), len(narrow), len(stores)


def measure(case: Case, arch: int, unhinted: Collection[str] = ()) -> Resources:
    """Compile one case and read its resources."""
    compiled = compile_case(case, arch, unhinted)
    ptx = compiled.asm["ptx"]
    registers, stack = _registers_and_stack(compiled.asm["cubin"])
    wide, narrow, stores = _loads_and_stores(ptx)
    entry = ptx[ptx.index(".entry") :].split("{")[0]
    version = re.search(r"\.version (\S+)", ptx)
    scratch = compiled.metadata.global_scratch_size + compiled.metadata.profile_scratch_size
    return Resources(
        case=case.name,
        arch=arch,
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        wide_loads=wide,
        narrow_loads=narrow,
        wide_stores=stores,
        parameters=len(re.findall(r"\.param", entry)),
        declared=len(case.signature),
        scratch=scratch,
        ptx=version.group(1) if version else "?",
    )


def problems(found: Resources, case: Case) -> list[str]:
    """Every limit that a compiled kernel breaks; empty means it passes."""
    limit = 1024 * SHARED_LIMIT[found.arch]
    allowed_ptx = PTX_VERSION.get(found.arch)
    broken = {
        f"spills or local memory: {found.stack} bytes of stack per thread": found.stack > STACK_LIMIT,
        f"shared memory {found.shared} over {limit} bytes": found.shared > limit,
        f"{found.wide_loads} wide loads, expected at least {case.wide_loads}": found.wide_loads < case.wide_loads,
        f"{found.narrow_loads} narrow loads, expected at most {case.narrow_loads}": (
            found.narrow_loads > case.narrow_loads
        ),
        f"{found.wide_stores} wide stores, expected at least {case.wide_stores}": found.wide_stores < case.wide_stores,
        f"{found.parameters} parameters, expected {found.declared} + {HIDDEN_PARAMETERS}": (
            found.parameters != found.declared + HIDDEN_PARAMETERS
        ),
        f"scratch memory {found.scratch} bytes, the launcher passes none": found.scratch > 0,
        f"PTX {found.ptx} is newer than {allowed_ptx}": (
            allowed_ptx is not None and int(found.ptx.replace(".", "")) > allowed_ptx
        ),
    }
    return [f"{found.case} sm_{found.arch}: {text}" for text, is_broken in broken.items() if is_broken]


def _row(found: Resources) -> str:
    return (
        f"{found.case:<34} sm_{found.arch:<4} {found.registers:>4} {found.stack:>6} {found.shared:>7}"
        f" {found.wide_loads:>5} {found.narrow_loads:>6} {found.wide_stores:>6}  {found.ptx}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table (or JSON); exit code 1 if a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m digseg_triton.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--full", action="store_true", help="every size on every architecture (minutes)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(arguments)
    results, broken = [], []
    if not options.json:
        print(f"{'kernel':<34} arch    regs  stack  shared  wide narrow stores  PTX   (triton {triton.__version__})")
    for arch in options.arch:
        for case in cases(arch, options.full):
            found = measure(case, arch)
            results.append(asdict(found))
            broken += problems(found, case)
            if not options.json:
                print(_row(found), flush=True)
    if options.json:
        print(json.dumps({"triton": triton.__version__, "results": results, "problems": broken}))
    else:
        print("\n".join(broken) if broken else f"{len(results)} kernels, all within limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
