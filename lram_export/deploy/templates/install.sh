#!/bin/sh
# Installs this kit into a folder of its own, without torch: sh install.sh [FOLDER] (default: /opt/lram/@NAME@)
# Needs Python 3.10 or newer with venv; for TensorRT, JetPack 6.1 or newer with its Python bindings (python3-libnvinfer).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-/opt/lram/@NAME@}
target=@TARGET@

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 is $(python3 -V 2>&1), 3.10 or newer is needed"
python3 -c 'import ensurepip, venv' 2> /dev/null || fail "no venv in this Python: apt-get install python3-venv"
python=@PYTHON@   # of the wheel in this kit: 3 is any, 3.12+ that and later ones
machine=@MACHINE@
[ "$machine" = any ] || [ "$machine" = "$(uname -m)" ] ||
    fail "this kit's wheel is for $machine, this machine is $(uname -m): lram-export deploy --wheel FILE takes one for it"
if [ "$python" != 3 ]; then
    python3 -c "
import sys
here, wanted = sys.version_info[:2], tuple(map(int, '${python%+}'.split('.')))
sys.exit(here < wanted if '$python'.endswith('+') else here != wanted)" ||
        fail "this kit's wheel is for Python $python, python3 is $(python3 -V 2>&1): lram-export deploy --wheel FILE takes one for it"
fi
constraint=""
if [ "$target" = tensorrt ]; then
    # what a user may have installed must not hide JetPack's: ask the system's Python
    version=$(python3 -c 'import tensorrt; print(tensorrt.__version__)' 2> /dev/null) ||
        fail "no TensorRT in python3: apt-get install nvidia-jetpack (or python3-libnvinfer)"
    case $version in
    [0-9].*) fail "TensorRT $version is too old, 10.0 or newer is needed: update to JetPack 6.1 or newer" ;;
    esac
    # bindings that are newer than the driver's CUDA do not work with it
    cuda=$(python3 -c '
import ctypes
version = ctypes.c_int()
assert ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0
print(version.value // 1000)' 2> /dev/null) || fail "no NVIDIA driver (libcuda.so.1) here"
    constraint="cuda-bindings<$((cuda + 1))"
fi

mkdir -p "$folder" || fail "cannot create $folder: run it with sudo, or name another folder: sh install.sh FOLDER"
folder=$(cd "$folder" && pwd) # systemd takes absolute paths only
case $folder in
*[!A-Za-z0-9._/-]*) fail "$folder: letters, digits, '.', '_', '-' and '/' only, for systemd" ;;
"$here"/*) fail "$folder is inside the kit; choose another folder" ;;
esac
if [ "$here" != "$folder" ]; then
    rm -rf "$folder/@NAME@.lram" "$folder"/lram_export-*.whl # what an earlier kit had and this one has not
    [ -f "$folder/robot.py" ] && mv "$folder/robot.py" "$folder/robot.py.mine"
    cp -r "$here/." "$folder/"
    [ -f "$folder/robot.py.mine" ] && mv "$folder/robot.py.mine" "$folder/robot.py"
fi
# --system-site-packages: JetPack's TensorRT is there and nowhere else
python3 -m venv --system-site-packages "$folder/venv"
[ -d "$folder/wheels" ] && set -- --no-index --find-links "$folder/wheels" || set --
"$folder/venv/bin/python" -m pip install --quiet "$@" "$folder/@WHEEL@[@EXTRA@]" ${constraint:+"$constraint"}
# again, for the package alone: pip keeps what has the same version
"$folder/venv/bin/python" -m pip install --quiet --force-reinstall --no-deps --no-index "$folder/@WHEEL@"

if [ "$target" = tensorrt ]; then
    "$folder/venv/bin/lram-export" compile "$folder/@NAME@.lram" --target tensorrt
fi
"$folder/venv/bin/lram-export" verify "$folder/@NAME@.lram" --target "$target"

sed "s|@FOLDER@|$folder|g" "$folder/lram-control.service.in" > "$folder/lram-control.service"
echo "Installed in $folder. Rehearse: $folder/venv/bin/python $folder/control_loop.py $folder/@NAME@.lram --target $target"
echo "As a service: fill in robot.py, then: cp $folder/lram-control.service /etc/systemd/system/ && systemctl enable --now lram-control"
