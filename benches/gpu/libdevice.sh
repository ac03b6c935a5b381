# CubeCL links the exponential, the logarithm and their like from CUDA's libdevice.10.bc. Without a toolkit,
# the copy in Triton's wheel serves.
libdevice() {
    local roots=(/usr/local/cuda /opt/cuda /usr/lib/cuda /usr) root copy
    if [ -n "${CUDA_PATH:-}" ]; then roots=("$CUDA_PATH"); fi
    for root in "${roots[@]}"; do
        if [ -f "$root/nvvm/libdevice/libdevice.10.bc" ]; then return; fi
    done
    copy=$(python3 -c '
import importlib.util, pathlib
triton = importlib.util.find_spec("triton")
print(next(pathlib.Path(triton.origin).parent.rglob("libdevice.10.bc"), "") if triton else "")')
    if [ -z "$copy" ]; then
        echo "no libdevice.10.bc: install a CUDA toolkit and set CUDA_PATH, or pip install triton" >&2
        return 1
    fi
    CUDA_PATH=$(mktemp -d)
    export CUDA_PATH
    mkdir -p "$CUDA_PATH/nvvm/libdevice"
    cp "$copy" "$CUDA_PATH/nvvm/libdevice"
}
