# CubeCL links the exponential, the logarithm and their like from CUDA's libdevice.10.bc. Without a toolkit,
# the copy in Triton's wheel serves.
libdevice() {
    local root
    for root in ${CUDA_PATH:-/usr/local/cuda /opt/cuda /usr/lib/cuda /usr}; do
        if [ -f "$root/nvvm/libdevice/libdevice.10.bc" ]; then return; fi
    done
    CUDA_PATH=$(mktemp -d)
    export CUDA_PATH
    mkdir -p "$CUDA_PATH/nvvm/libdevice"
    cp "$(python3 -c 'import importlib.util, pathlib
triton = pathlib.Path(importlib.util.find_spec("triton").origin).parent
print(next(triton.rglob("libdevice.10.bc")))')" "$CUDA_PATH/nvvm/libdevice"
}
