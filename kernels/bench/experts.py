"""Checks the wide products of routed experts against torch, and times them beside torch._grouped_mm.

    python3 experts.py --compile                     # registers and spills, no GPU
    python3 experts.py [--only WORD ..] [--time] [--variant "NAME=VALUE .." ..] [--cubins DIR]
    compute-sanitizer --tool memcheck python3 experts.py --small --inline

Each check draws fresh inputs, poisons every output with NaN, and runs twice, with another grid, for bit equality. A kernel
whose check fails is not timed. Each kernel has a process of its own, which is ended after --limit seconds. A variant is a
set of macros; the first is the default. `--inline` stays in one process.
"""
import argparse, ctypes, hashlib, os, re, signal, statistics, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
SOURCES = ["expert_products.cu", "expert_weight_grad.cu"]
SMEM = {"bf16": 231504, "int8": 200032, "grad": 229440}


# ---- NVRTC -----------------------------------------------------------------------------------------------------------

def nvrtc():
    import glob, site
    roots = [os.path.join(p, "nvidia") for p in site.getsitepackages() + sys.path] + [os.path.expanduser("~/.cache/lightc/venv-2.11.0/lib/python3.11/site-packages/nvidia")]
    found = [f for r in roots for f in glob.glob(r + "/**/libnvrtc.so.1[3-9]", recursive=True)]
    for f in found:
        for builtins in glob.glob(os.path.dirname(f) + "/libnvrtc-builtins.so.1[3-9]*"):
            ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(f)
    return ctypes.CDLL("libnvrtc.so.13")


def compile(source, defines, cubins):
    """Code of a source and what ptxas printed; kept in `cubins`."""
    text = open(os.path.join(ROOT, source)).read()
    include = os.path.join(ROOT, "include")
    headers = {f: open(os.path.join(include, f)).read() for f in sorted(os.listdir(include)) if f.endswith(".cuh")}
    key = hashlib.sha256(repr((text, headers, sorted(defines))).encode()).hexdigest()[:16]
    kept = os.path.join(cubins, f"{source}.{key}")
    if os.path.exists(kept + ".cubin"):
        return open(kept + ".cubin", "rb").read(), open(kept + ".log").read()
    lib, C, program = nvrtc(), ctypes.c_char_p, ctypes.c_void_p()
    names = list(headers)
    many = lambda items: (C * len(items))(*[i.encode() for i in items])
    assert lib.nvrtcCreateProgram(ctypes.byref(program), text.encode(), source.encode(), len(names), many([headers[n] for n in names]), many(names)) == 0
    options = ["--gpu-architecture=sm_90a", "-std=c++17", "--ptxas-options=-v", "--diag-suppress=177"] + ["-D" + d for d in defines]
    code, size = lib.nvrtcCompileProgram(program, len(options), many(options)), ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    log = log.value.decode()
    if code:
        raise SystemExit(f"{source} does not compile:\n{log}")
    lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetCUBIN(program, cubin)
    os.makedirs(cubins, exist_ok=True)
    open(kept + ".log", "w").write(log)
    open(kept + ".cubin", "wb").write(cubin.raw)
    return cubin.raw, log


def report(log):
    entry = None
    for line in log.splitlines():
        if m := re.search(r"entry function '(\w+)'", line):
            entry = m[1]
        elif "spill" in line:
            spill = line.split("ptxas")[-1].strip(" .:")
        elif m := re.search(r"Used (\d+) registers", line):
            print(f"  {entry:28s} {m[1]:>4s} registers, {spill}")
        elif "warn" in line.lower() or "(C7" in line:
            print("  !", line)


# ---- the driver ------------------------------------------------------------------------------------------------------

class Driver:
    def __init__(self):
        import torch
        torch.cuda.init(), torch.zeros(1, device="cuda")
        self.cu, self.torch, self.functions, self.keep = ctypes.CDLL("libcuda.so.1"), torch, {}, []
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    def check(self, code, what):
        if code:
            text = ctypes.c_char_p()
            self.cu.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{what}: {code} {text.value}")

    def load(self, cubin):
        module = ctypes.c_void_p()
        self.check(self.cu.cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
        return module

    def function(self, module, name, smem):
        f = ctypes.c_void_p()
        self.check(self.cu.cuModuleGetFunction(ctypes.byref(f), module, name.encode()), name)
        self.check(self.cu.cuFuncSetAttribute(f, 8, smem), "shared memory")
        return f

    def map(self, t, box):
        """Rank 3, dimensions innermost first; 128-byte swizzle for bf16, 64-byte for codes."""
        int8 = t.element_size() == 1
        raw = ctypes.create_string_buffer(256)
        at = (ctypes.addressof(raw) + 63) & ~63
        dims, strides = (ctypes.c_uint64 * 3)(*reversed(t.shape)), (ctypes.c_uint64 * 2)(*[t.element_size() * t.stride(i) for i in (1, 0)])
        code = self.cu.cuTensorMapEncodeTiled(ctypes.c_void_p(at), 0 if int8 else 9, 3, ctypes.c_void_p(t.data_ptr()), dims, strides,
                                              (ctypes.c_uint32 * 3)(*box), (ctypes.c_uint32 * 3)(1, 1, 1), 0, 2 if int8 else 3, 3, 0)
        self.check(code, "cuTensorMapEncodeTiled")
        return Map(raw, at)

    def launcher(self, f, grid, smem, args):
        holders, pointers = [], []
        for a in args:
            if isinstance(a, Map):
                pointers.append(a.at), holders.append(a)
                continue
            value = ctypes.c_int32(a) if isinstance(a, int) else ctypes.c_uint64(0 if a is None else a.data_ptr())
            holders.append((value, a)), pointers.append(ctypes.addressof(value))
        array = (ctypes.c_void_p * len(pointers))(*pointers)

        def launch(grid=grid, _keep=holders):
            stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
            self.check(self.cu.cuLaunchKernel(f, grid, 1, 1, 384, 1, 1, smem, stream, array, None), "launch")
        return launch


class Map:
    def __init__(self, raw, at):
        self.raw, self.at = raw, at


# ---- routings --------------------------------------------------------------------------------------------------------

def routing(torch, kind, tokens, k, experts):
    """ids [tokens, k], order, bounds."""
    P, g = tokens * k, dict(device="cuda")
    if kind == "balanced":  # distinct experts of a token, all equally likely
        ids = torch.rand(tokens, experts, **g).argsort(1)[:, :k] if k <= experts else torch.randint(experts, (tokens, k), **g)
    elif kind == "zipf":
        p = 1.0 / torch.arange(1, experts + 1, **g)
        ids = torch.multinomial(p[torch.randperm(experts, **g)].expand(tokens, experts).contiguous(), k, replacement=True)
    elif kind == "holes":  # a third without an expert, half of the experts without a place
        ids = torch.randint((experts + 1) // 2, (tokens, k), **g) * 2 % experts
        ids[torch.rand(tokens, k, **g) < 0.33] = -1
    elif kind == "single":
        ids = torch.full((tokens, k), experts - 1, **g)
    elif kind == "none":
        ids = torch.full((tokens, k), -1, **g)
    ids = ids.long()
    key = torch.where(ids < 0, experts, ids).flatten()
    order = torch.sort(key, stable=True).indices
    counts = torch.bincount(key, minlength=experts + 1)[:experts]
    return ids, order, torch.cat([torch.zeros(1, dtype=torch.long, **g), counts.cumsum(0)])


def product(torch, order, bounds, P, n, terms, wide):
    """Sum of terms (x, run, w [experts, n, k]) in `wide` precision; zeros elsewhere."""
    y = torch.zeros(P, n, device="cuda", dtype=wide)
    ends = bounds.tolist()
    for e in range(len(ends) - 1):
        at = order[ends[e]:ends[e + 1]]
        if len(at):
            for x, run, w in terms:
                y[at] += x[at // run].to(wide) @ w[e].to(wide).T
    return y


def differs(torch, got, want, terms=1.0):
    """What is wrong, or None. Half a unit of bf16 of the value, and a little of the size of what was added."""
    if torch.equal(got, want.to(got.dtype)):
        return None
    got, want = got.double(), want.double()
    bad_nan = got.isnan() != want.isnan()
    if bad_nan.any():
        return f"{int(bad_nan.sum())} NaN differ of {got.numel()}"
    size = want.nan_to_num().square().mean(1, keepdim=True).sqrt() * 1e-3 * terms
    off = ((got - want).abs() - want.abs() * 2**-7.98 - size).nan_to_num()
    if (off > 0).any():
        at = int(off.argmax())
        row, column = divmod(at, got.shape[1])
        return f"{int((off > 0).sum())} of {off.numel()} off, worst at {row},{column}: {got.flatten()[at]:.6g} for {want.flatten()[at]:.6g}"


# ---- kernels ---------------------------------------------------------------------------------------------------------

class Case:
    """Inputs of one kernel at one size, its launch, and what it should give."""
    def __init__(self, d, kernel, form, tokens, topk, experts, k, n, run, low, saved=True, nan=False, big=False):
        torch = self.torch = d.torch
        self.d, self.kernel = d, kernel
        self.ids, self.order, self.bounds = routing(torch, form, tokens, topk, experts)
        P = self.P = tokens * topk
        self.wide = torch.float32 if big else torch.float64
        rnd = lambda *s: torch.randn(*s, device="cuda").bfloat16()
        int8 = kernel.endswith("int8")
        rows = (P + run - 1) // run
        self.label = f"{kernel} {form} P={P} experts={experts} k={k} n={n} run={run}{' low' if low else ''}{' hidden alone' if not saved else ''}"

        def weight(turned):
            """What the kernel takes, its scale, and what it amounts to as [experts, n, k]."""
            shape = (experts, k, n) if turned else (experts, n, k)
            if not int8:
                w = (torch.randn(shape, device="cuda") * k**-0.5).bfloat16()
                return w, None, w.transpose(1, 2) if turned else w
            q = torch.randint(-128, 128, shape, device="cuda", dtype=torch.int8)
            s = (torch.rand(shape[:2], device="cuda") + 0.5) * (k**-0.5 / 74)
            if turned:
                high = (64 * s).bfloat16().double()
                low = (64 * s.double() - high).bfloat16().double()
                q64 = q.double() / 64
                return q, s, (q64 * high[..., None] + (q64 * low[..., None]).bfloat16().double()).bfloat16().transpose(1, 2)
            return q, s, (q, s)
        lows = lambda turned: (rnd(P, 16), (torch.randn(experts, *((16, n) if turned else (n, 16)), device="cuda") * 0.3).bfloat16())
        wide_of = lambda w: w if not isinstance(w, tuple) else w[0].to(self.wide) * w[1].to(self.wide)[..., None]
        plain_box, turned_box = (64, 128, 1), (64, 64, 1)
        tail = [self.order, self.bounds]
        turned, pair = "turned" in kernel, "pair" in kernel
        entry = self.entry = kernel.replace("_pair", "")
        if entry == "experts_weight_grad":
            self.smem, self.grid, self.grid2 = SMEM["grad"], d.sms, 5
            x, dy = rnd(rows, k), rnd(P, n)
            self.outs = [torch.empty(experts * n, k, device="cuda", dtype=torch.bfloat16)]
            self.args = [x, dy, *tail, self.outs[0], run, 1, P, experts, k, n]
            def want():
                dw, ends = torch.zeros(experts, n, k, device="cuda", dtype=self.wide), self.bounds.tolist()
                for e in range(experts):
                    at = self.order[ends[e]:ends[e + 1]]
                    dw[e] = dy[at].to(self.wide).T @ x[at // run].to(self.wide)
                return [dw.view(experts * n, k)]
            self.want, self.flops = want, 2 * int(self.bounds[-1]) * k * n
            return
        self.smem, self.grid, self.grid2 = SMEM["int8" if int8 else "bf16"], d.sms // 2 * 2, 6
        xs = [rnd(rows, k) for _ in range(2 if pair else 1)]
        if nan:
            xs[0][rows // 2, 3] = float("nan")
        sides = 2 if pair or "swiglu" in kernel else 1
        ws = [weight(turned) for _ in range(sides)]
        ls = [lows(turned) for _ in range(sides)] if low else []
        maps = [d.map(w, turned_box if turned else plain_box) for w, _, _ in ws]
        low_maps = [d.map(l[1], turned_box if turned else plain_box) for l in ls] or maps
        self.keep = (xs, ws, ls)
        count = 1 if entry.startswith("experts_dot") and not turned else 2
        fill = lambda items, n: (items + [items[0] if items else None] * n)[:n]
        null = lambda items, n: (items + [None] * n)[:n]
        xs_args = null(xs, 2) if turned else xs
        scales = fill([s for _, s, _ in ws], count) if int8 else []
        outs = self.outs = [torch.empty(P, n, device="cuda", dtype=torch.bfloat16) for _ in range(3 if "swiglu" in kernel and saved else 1)]
        self.args = fill(maps, count) + fill(low_maps, count) + xs_args + null([l[0] for l in ls], count) + scales + tail + (null(outs, 3) if "swiglu" in kernel else outs) + [run, P, experts, k, n]
        low_terms = [(l[0], 1, l[1].transpose(1, 2) if turned else l[1]) for l in ls]
        call = lambda terms: product(torch, self.order, self.bounds, P, n, [(x, r, wide_of(w)) for x, r, w in terms], self.wide)
        if "swiglu" in kernel:
            def want():
                g, u = (call([(xs[0], run, ws[i][2])] + low_terms[i:i + 1]) for i in range(2))
                return [g * torch.sigmoid(g) * u, g, u][:len(outs)]
        else:
            want = lambda: [call([(x, run, w[2]) for x, w in zip(xs, ws)] + low_terms)]
        self.want, self.flops = want, 2 * int(self.bounds[-1]) * k * n * sides

    def launcher(self, module):
        return self.d.launcher(self.d.function(module, self.entry, self.smem), self.grid, self.smem, self.args)

    def check(self, module):
        torch, launch, runs = self.torch, self.launcher(module), []
        for grid in (self.grid, self.grid2):
            for o in self.outs:
                o.fill_(float("nan"))
            launch(grid)
            torch.cuda.synchronize()
            runs.append([o.clone() for o in self.outs])
        if not all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(*runs)):
            return "two runs differ"
        for i, (got, want) in enumerate(zip(runs[0], self.want())):
            if wrong := differs(torch, got, want, 3.0 if "swiglu" in self.kernel else 1.0):
                return f"output {i}: {wrong}"


def timed(torch, calls, flush, n=15):
    """Medians in milliseconds, with a cold L2. Calls take turns, for a GPU that works hard clocks lower as it goes on."""
    events = [[] for _ in calls]
    for i in range(n + 2):
        for f, e in zip(calls, events):
            flush.zero_()
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record(), f(), b.record()
            if i >= 2:
                e.append((a, b))
        torch.cuda.synchronize()
    return [statistics.median(a.elapsed_time(b) for a, b in e) for e in events]


KERNELS = ["experts_swiglu", "experts_dot", "experts_dot_turned", "experts_dot_turned_pair", "experts_weight_grad",
           "experts_swiglu_int8", "experts_dot_int8", "experts_dot_turned_int8", "experts_dot_turned_pair_int8"]
# form, tokens, topk, experts, k, n, run of topk
SMALL = [("balanced", 100, 2, 3, 128, 256, True), ("holes", 333, 3, 7, 64, 64, True), ("zipf", 217, 2, 5, 192, 320, False)]
CHECKS = SMALL + [("balanced", 1, 1, 1, 64, 64, True), ("balanced", 2000, 12, 58, 256, 512, True), ("zipf", 1111, 2, 20, 1024, 832, True), ("holes", 8192, 2, 20, 512, 256, True),
                  ("single", 700, 3, 58, 256, 192, True), ("none", 50, 2, 20, 128, 320, True), ("zipf", 5, 12, 500, 128, 448, True)]
T, D, F, E, TOP = 8192, 4096, 1024, 58, 12


def full(d, kernel, form, **more):
    down = kernel in ("experts_dot", "experts_dot_int8") or "pair" in kernel
    k, n = (F, D) if down else (D, F)
    run = TOP if not down else 1
    return Case(d, kernel, form, T, TOP, E, k, n, run, more.pop("low", False), big=True, **more)


def peer(d, case):
    """torch._grouped_mm of the same rows, already in order; None where it takes none."""
    torch, kernel = d.torch, case.kernel
    rnd = lambda *s: torch.randn(*s, device="cuda").bfloat16()
    offs = case.bounds[1:].int()
    if kernel == "experts_weight_grad":
        a, b = rnd(case.P, F), rnd(case.P, D)
        return lambda: torch._grouped_mm(a.t(), b, offs=offs)
    if kernel.startswith("experts_swiglu"):
        a, b = rnd(case.P, D), rnd(E, D, 2 * F)
    elif kernel == "experts_dot":
        a, b = rnd(case.P, F), rnd(E, F, D)
    elif kernel == "experts_dot_turned":
        a, b = rnd(case.P, D), rnd(E, F, D).transpose(-2, -1)
    else:
        return None
    return lambda: torch._grouped_mm(a, b, offs=offs)


def work(kernel, options, variants):
    """Checks and times one kernel."""
    import torch
    torch.manual_seed(os.getpid() if not options.seed else options.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    d = Driver()
    source = SOURCES[kernel == "experts_weight_grad"]
    good, grad = True, kernel == "experts_weight_grad"
    modules = [d.load(compile(source, v, options.cubins)[0]) for v in variants]
    lows = [False] if grad else [False, True]
    cases = SMALL if options.small else CHECKS
    start = time.time()
    if options.once:  # one launch, for a profiler
        case = full(d, kernel, "balanced", low="int8" in kernel)
        case.launcher(modules[0])()
        torch.cuda.synchronize()
        return True
    for i, (form, tokens, topk, experts, k, n, by_token) in enumerate(cases):
        for low in lows if i % 3 == 0 or experts == 20 else [bool(i % 2) and not grad]:
            if options.no_low and low:
                continue
            case = Case(d, kernel, form, tokens, topk, experts, k, n, topk if by_token else 1, low, saved=i % 4 != 1, nan=i == 2)
            for v, m in zip(variants, modules):
                wrong = None if any("ABLATE" in d for d in v) else case.check(m)
                if wrong:
                    good = False
                    print(f"RED   {case.label} {v}: {wrong}", flush=True)
            if i == 0:  # the check itself: one wrong value must show
                spoiled = [o.clone() for o in case.outs]
                spoiled[0][-1, -1] += 1
                if not differs(torch, spoiled[0], case.want()[0], 3.0):
                    good = False
                    print("RED   the comparison does not see a wrong value")
    print(f"{'green' if good else 'RED  '} {kernel}: {len(cases)} sizes x {len(variants)} variants, {time.time() - start:.1f} s", flush=True)
    if not options.time or not good:
        return good
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    for form in ["balanced", "zipf"] if options.zipf else ["balanced"]:
        forms = [dict(saved=True), dict(saved=False)] if "swiglu" in kernel else [dict()]
        if "int8" in kernel or options.low:
            forms = [dict(f, low=True) for f in forms]
        for more in forms:
            case = full(d, kernel, form, **more)
            wrong = case.check(modules[0])
            if wrong:
                print(f"RED   {case.label}: {wrong}", flush=True)
                return False
            calls, names = [case.launcher(m) for m in modules], [" ".join(v) or "default" for v in variants]
            other = None
            if "int8" in kernel:
                other = full(d, kernel.replace("_int8", ""), form, **dict(more, low=False))
                calls.append(other.launcher(modules[0])), names.append("bf16 without low, default")
            if form == "balanced" and (f := peer(d, case)):
                calls.append(f), names.append("torch._grouped_mm")
            if options.burst:  # by itself, rested, as a bench of one op does it
                for name, f in list(zip(names, calls)):
                    if name == "default" or name.startswith("torch") or name.startswith("bf16"):
                        time.sleep(0.5)
                        t = timed(torch, [f], flush, 25)[0]
                        print(f"BURST {case.label} {name}: {t:.3f} ms {case.flops / t / 1e9:.0f} TFLOP/s", flush=True)
            for name, t in zip(names, timed(torch, calls, flush, options.rounds)):
                print(f"TIME  {case.label} {name}: {t:.3f} ms {case.flops / t / 1e9:.0f} TFLOP/s", flush=True)
            case = calls = f = other = None
            torch.cuda.empty_cache()
    return good


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--compile", action="store_true"), p.add_argument("--small", action="store_true"), p.add_argument("--inline", action="store_true")
    p.add_argument("--time", action="store_true"), p.add_argument("--no-low", action="store_true"), p.add_argument("--low", action="store_true"), p.add_argument("--zipf", action="store_true"), p.add_argument("--once", action="store_true")
    p.add_argument("--only", nargs="*", default=[]), p.add_argument("--variant", nargs="*", default=[])
    p.add_argument("--cubins", default="/tmp/expert_cubins"), p.add_argument("--limit", type=int, default=40), p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--burst", action="store_true"), p.add_argument("--seed", type=int, default=0)
    options = p.parse_args()
    variants = [[]] + [v.split() for v in options.variant]
    if options.compile:
        for v in variants:
            for s in SOURCES:
                print(s, *v), report(compile(s, v, options.cubins)[1])
        return 0
    kernels = [k for k in KERNELS if not options.only or k in options.only]
    if options.inline:
        return 0 if all([work(k, options, variants) for k in kernels]) else 1
    import torch  # before the processes, which then start at once
    failed = []
    for kernel in kernels:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if work(kernel, options, variants) else 1
            except BaseException as error:
                print(f"RED   {kernel}: {error!r}"[:600], flush=True)
            os._exit(code)
        end = time.time() + options.limit
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if status:
                    failed.append(kernel)
                break
            if time.time() > end:
                os.kill(child, signal.SIGKILL), os.waitpid(child, 0)
                print(f"RED   {kernel}: not done after {options.limit} s", flush=True), failed.append(kernel)
                break
            time.sleep(0.02)
    print("device:", os.popen("nvidia-smi --query-gpu=name --format=csv,noheader").read().strip(), "| failed:", " ".join(failed) or "none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
