"""Compiles kernels with NVRTC for sm_90a and prints registers, spills and shared memory. Needs no GPU.

    python3 compile.py [FILE.cu ...]
"""
import ctypes, glob, os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.dirname(HERE)


def _nvrtc():
    names = ["libnvrtc.so.13", "libnvrtc.so", "libnvrtc.so.12"] + sorted(
        p for root in sys.path if root for p in glob.glob(os.path.join(root, "nvidia/*/lib/libnvrtc.so*")))
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    sys.exit("libnvrtc not found")


def compile_cubin(path, defines=()):
    """(cubin, log) of one source; exits with the compiler's log on failure."""
    lib = _nvrtc()
    source = open(path, "rb").read()
    prog = ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(prog), source, os.path.basename(path).encode(), 0, None, None)
    options = ["--gpu-architecture=sm_90a", "-std=c++17", "-I" + os.path.join(KERNELS, "include"), "--ptxas-options=-v",
               "--diag-suppress=177"] + ["-D" + d for d in defines]
    array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    code = lib.nvrtcCompileProgram(prog, len(options), array)
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(prog, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(prog, log)
    log = log.value.decode()
    if code:
        sys.exit(f"{path}: NVRTC error {code}\n{log}")
    lib.nvrtcGetCUBINSize(prog, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetCUBIN(prog, cubin)
    lib.nvrtcDestroyProgram(ctypes.byref(prog))
    return cubin.raw, log


def resources(log):
    """[(kernel, registers, stack, spill stores, spill loads)] and the lines that are neither."""
    rows, rest, name = [], [], None
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            name = m[1]
        elif m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame = m.groups()
        elif m := re.search(r"Used (\d+) registers", line):
            rows.append((name, int(m[1]), *map(int, frame)))
        elif not re.search(r"Function properties|gmem|Compile time", line) and line.strip():
            rest.append(line)
    return rows, rest


if __name__ == "__main__":
    files = sys.argv[1:] or sorted(glob.glob(os.path.join(KERNELS, "*.cu")))
    for f in files:
        cubin, log = compile_cubin(f)
        rows, rest = resources(log)
        for name, registers, stack, stores, loads in rows:
            print(f"{os.path.basename(f):28s} {name:24s} {registers:4d} registers  {stack:4d} stack  {stores:4d}/{loads:4d} spilled")
        for line in rest:
            print("   ", line)
