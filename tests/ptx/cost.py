#!/usr/bin/env python3
"""Counts the instructions in the code of each activation's kernel, for each number it treats, without a GPU.

    tests/ptx/cost.py TARGET/release/deps/device-HASH --json docs/results/activation-ptx.json

The program is the bench `device`, built with `--features cuda`. NVIDIA's ptxas and nvdisasm (wheels
nvidia-cuda-nvcc and nvidia-cuda-nvdisasm) must be on the PATH, a CUDA toolkit or CUDA_PATH as for run.sh.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile

RUN = pathlib.Path(__file__).parent / "run.sh"
CURVES = ["relu", "relu6", "softplus", "silu", "gelu", "gelu-tanh", "mish", "psoftplus:10", "elu:1", "celu:1", "smooth-relu:400",
          "swish:1", "shifted-swish", "squareplus:4", "leaky-relu:0.01"]
ARCHITECTURE = "sm_90a"


def machine_code(ptx, folder):
    """The instructions of a kernel and of what it calls."""
    binary = folder / "kernel.cubin"
    subprocess.run(["ptxas", f"-arch={ARCHITECTURE}", str(ptx), "-o", str(binary)], check=True)
    text = subprocess.run(["nvdisasm", "-c", str(binary)], check=True, capture_output=True, text=True).stdout
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", text)
    # The end of the code is padding, behind a jump onto itself.
    names = [name for name in names if name != "NOP"]
    assert names[-1] == "BRA", names[-1]
    return names[:-1]


def kernels(program, curve, dtype, folder):
    environment = os.environ | {"PTX_CACHE": str(folder)}
    arguments = ["--device", "cuda", "--elements", "4096", "--milliseconds", "1", "--norm-shape", "2,4,2,2"]
    command = [RUN, program, *arguments, "--dtype", dtype, "--curves", curve]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    for path in sorted(folder.rglob("*.ptx")):
        match = re.search(r"\.entry (forward|backward)_(?:fixed|learned)_e_\w+?_n_(\d+)_", path.read_text())
        if match and int(match.group(2)) > 1:
            yield match.group(1), int(match.group(2)), machine_code(path, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    rows = []
    print("| activation | type | pass | instructions a number | branches |")
    print("|---|---|---|--:|--:|")
    for curve in CURVES:
        for dtype in ("f32", "bf16"):
            with tempfile.TemporaryDirectory() as folder:
                found = list(kernels(arguments.program, curve, dtype, pathlib.Path(folder)))
            for kind in ("forward", "backward"):
                # In place or not: the longer one.
                size, code = max(((size, code) for name, size, code in found if name == kind), key=lambda it: len(it[1]))
                row = {"activation": curve, "dtype": dtype, "pass": kind, "numbers_a_thread": size,
                       "instructions": round(len(code) / size, 1), "branches": code.count("BRA")}
                rows.append(row)
                print(f"| {curve} | {dtype} | {kind} | {row['instructions']} | {row['branches']} |", flush=True)
    with open(arguments.json, "w") as file:
        json.dump({"architecture": ARCHITECTURE, "rows": rows}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
