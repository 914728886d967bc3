#!/bin/sh
# Installs this kit into a folder of its own, without torch:
#     sh install.sh [--isolated] [FOLDER]     (default: /opt/lram/@NAME@)
# Needs Python 3.10 or newer with venv; for TensorRT, JetPack 6.1 or newer with its Python bindings (python3-libnvinfer).
# What the system's Python has is used and left as it is, numpy above all; --isolated uses nothing of it.
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd -P) # where the files are, whatever links lead there
target=@TARGET@
offline=@OFFLINE@ # yes: all that is needed lies in wheels/

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

system=--system-site-packages
folder=
while [ $# -gt 0 ]; do
    case $1 in
    --isolated) system= ;;
    -*) fail "$1: unknown option; it takes --isolated" ;;
    *)
        [ -z "$folder" ] || fail "$1: one folder is enough, and $folder is named already"
        folder=$1
        ;;
    esac
    shift
done
folder=${folder:-/opt/lram/@NAME@}
[ -n "$system" ] || [ "$target" != tensorrt ] || fail "--isolated: JetPack's TensorRT is in the system's Python and nowhere else"

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "python3 is $(python3 -V 2>&1), 3.10 or newer is needed"
python3 -c 'import ensurepip, venv' 2> /dev/null || fail "no venv in this Python: apt-get install python3-venv"
python=@PYTHON@   # what the wheels in this kit are for: 3 is any, 3.12+ that and later ones
machine=@MACHINE@
glibc=@GLIBC@
glibcxx=@GLIBCXX@ # GLIBCXX_3.4.N, which the engine asks of libstdc++
[ "$machine" = any ] || [ "$machine" = "$(uname -m)" ] ||
    fail "this kit is for $machine, this machine is $(uname -m): lram-export deploy --platform makes one for it"
if [ "$python" != 3 ]; then
    python3 -c "
import sys
here, wanted = sys.version_info[:2], tuple(map(int, '${python%+}'.split('.')))
sys.exit(here < wanted if '$python'.endswith('+') else here != wanted)" ||
        fail "this kit is for Python $python, python3 is $(python3 -V 2>&1): lram-export deploy --python makes one for it"
fi
if [ -n "$glibc" ]; then
    python3 -c "
import os, sys
here = os.confstr('CS_GNU_LIBC_VERSION').split()[-1]
print(here)
sys.exit(tuple(map(int, here.split('.')[:2])) < tuple(map(int, '$glibc'.split('.'))))" > /dev/null 2>&1 ||
        fail "this kit may need glibc $glibc, this machine has an older one: lram-export deploy --dist makes one for it; --glibc, if --offline"
fi
if [ -n "$glibcxx" ]; then
    # the library that this Python loads, and the newest of its versions
    python3 -c '
import ctypes, re, sys
ctypes.CDLL("libstdc++.so.6")
path = next(line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/libstdc++.so" in line)
versions = re.findall(rb"\0GLIBCXX_3\.4\.(\d+)(?=\0)", open(path, "rb").read())
sys.exit(max(map(int, versions)) < int(sys.argv[1].rpartition(".")[2]))' "$glibcxx" 2> /dev/null ||
        fail "this kit needs libstdc++ with GLIBCXX_$glibcxx, this machine has an older one or none: lram-export deploy --dist makes one for it"
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

(cd "$here/wheels" && sha256sum -c SHA256SUMS > /dev/null 2>&1) ||
    fail "$here/wheels: a file is not what it was when the kit was packed (sha256sum -c SHA256SUMS tells which): unpack the kit again"
# pip takes the newest of what lies there, and that may be of another kit
for file in "$here"/wheels/*; do
    name=${file##*/}
    [ "$name" = SHA256SUMS ] || sed 's/^[0-9a-f]*  //' "$here/wheels/SHA256SUMS" | grep -qxF -- "$name" ||
        fail "$file is not of this kit (wheels/SHA256SUMS does not name it): remove it, or unpack the kit into an empty folder"
done

# systemd takes absolute paths only; and a link to the kit is the kit
folder=$(python3 -c 'import os, sys; os.write(1, os.fsencode(os.path.realpath(sys.argv[1])))' "$folder")
case $folder in
*[!A-Za-z0-9._/-]*) fail "$folder: letters, digits, '.', '_', '-' and '/' only, for systemd" ;;
"$here"/*) fail "$folder is inside the kit; choose another folder" ;;
esac
mkdir -p "$folder" || fail "cannot create $folder: run it with sudo, or name another folder: sh install.sh FOLDER"
if [ "$here" != "$folder" ]; then
    rm -rf "$folder/@NAME@.lram" "$folder/wheels" # what an earlier kit had and this one has not
    for file in "$here"/*; do
        case ${file##*/} in
        robot.py | venv) ;;
        *) cp -r "$file" "$folder/" || fail "cannot copy $file to $folder" ;;
        esac
    done
    if [ ! -e "$folder/robot.py" ]; then # one that is there is the user's, and stays whatever fails
        cp "$here/robot.py" "$folder/robot.py.part" || fail "cannot copy $here/robot.py to $folder"
        mv "$folder/robot.py.part" "$folder/robot.py"
    fi
fi
# anew: packages that an earlier one had, --isolated or not, would hide the system's
python3 -m venv --clear $system "$folder/venv"
# what else the robot has was built for its numpy, so that one stays
numpy=""
[ -z "$system" ] || numpy=$(python3 -c 'import numpy; print(numpy.__version__)' 2> /dev/null) || numpy=""
[ -n "$offline" ] && set -- --no-index --find-links "$folder/wheels" || set --
"$folder/venv/bin/python" -m pip install --quiet "$@" "$folder/wheels/@WHEEL@[@EXTRAS@]" ${numpy:+"numpy==$numpy"} ${constraint:+"$constraint"} ||
    fail "pip could not install what target $target needs${numpy:+ beside numpy $numpy of this robot, which stays as it is; where that is the reason, sh install.sh --isolated brings another one}"
# again, for the package alone: pip keeps what has the same version
"$folder/venv/bin/python" -m pip install --quiet --force-reinstall --no-deps --no-index "$folder/wheels/@WHEEL@"

if [ "$target" = tensorrt ]; then
    "$folder/venv/bin/lram-export" compile "$folder/@NAME@.lram" --target tensorrt
fi
"$folder/venv/bin/lram-export" verify "$folder/@NAME@.lram" --target "$target"

sed "s|@FOLDER@|$folder|g" "$folder/lram-control.service.in" > "$folder/lram-control.service"
echo "Installed in $folder. Rehearse: $folder/venv/bin/python $folder/control_loop.py $folder/@NAME@.lram --target $target"
echo "As a service: fill in robot.py, then: cp $folder/lram-control.service /etc/systemd/system/ && systemctl enable --now lram-control"
