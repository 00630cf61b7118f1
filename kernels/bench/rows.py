"""Checks generated row kernels against their nodes in 64 bits, and times them.

    lightc inspect FILE --stage S --emit cuda               > kernels.cu
    lightc inspect FILE --stage S --emit cuda --format json > kernels.json
    python3 rows.py kernels.cu kernels.json [--host] [--only WORD] [--sizes b=1,t=8192] [--time]

`--host` runs them on the CPU, thread by thread, for small sizes. Each check draws fresh inputs, poisons every output
with NaN first, and runs twice for bit equality. The reference is computed in float64, rounded to bf16 where a value is
of class `act`. A kernel whose check fails is not timed.
"""
import argparse, ctypes, json, math, os, re, statistics, subprocess, sys, tempfile
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
KIND = {"act": torch.bfloat16, "f32": torch.float32, "bool": torch.bool, "index": torch.int64}


class Sizes(dict):
    """Values of size names; a name without one has that of `t`."""
    def __missing__(self, name):
        return self["t"]


def size(text, sizes):
    return int(eval(str(text).replace("^", "**"), {"__builtins__": {}}, sizes))


def shape(value, sizes):
    return [size(n, sizes) for _, n in value["axes"]]


def names(value):
    return [name for name, _ in value["axes"]]


# ---- reference -------------------------------------------------------------------------------------------------------

def align(x, axes, to):
    """x with named axes, viewed so that it broadcasts against the axes `to`."""
    order = [axes.index(a) for a in to if a in axes]
    x = x.permute(order)
    return x[tuple(slice(None) if a in axes else None for a in to)]


def sigmoid_slope(x):
    s = torch.sigmoid(x)
    return s * (1 - s)


SLOPE = {
    "exp": torch.exp, "ln": lambda x: 1 / x, "sqrt": lambda x: 0.5 / x.sqrt(), "rsqrt": lambda x: -0.5 / (x * x.sqrt()),
    "recip": lambda x: -1 / x**2, "sigmoid": sigmoid_slope,
    "silu": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))), "softplus": torch.sigmoid,
    "tanh": lambda x: 1 - x.tanh()**2, "square": lambda x: 2 * x, "floor": torch.zeros_like, "abs": torch.sign,
}
VALUE = {
    "exp": torch.exp, "ln": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "recip": lambda x: 1 / x,
    "sigmoid": torch.sigmoid, "silu": lambda x: x * torch.sigmoid(x),
    "softplus": lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), "tanh": torch.tanh, "square": torch.square,
    "floor": torch.floor, "abs": torch.abs,
}
BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "min": torch.minimum, "max": torch.maximum,
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
}


def sinkhorn(x, iterations, eps):
    k = torch.exp(x - x.max(-1, keepdim=True)[0])
    u, v = torch.ones_like(x[..., :, :1]), torch.full_like(x[..., :1, :], 1 / x.shape[-1])
    for _ in range(iterations):
        u = 1 / ((k * v).sum(-1, keepdim=True) + eps)
        v = 1 / ((k * u).sum(-2, keepdim=True) + eps)
    return u * k * v


def rotary(x, position, base, inverse):
    """x [time, .., pairs]"""
    width = x.shape[-1]
    angle = position[:, None] * base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=x.device) / width)
    angle = angle.view(angle.shape[0], *[1] * (x.dim() - 2), -1)
    c, s = angle.cos(), angle.sin() * (-1 if inverse else 1)
    e, o = x[..., 0::2], x[..., 1::2]
    return torch.stack([e * c - o * s, e * s + o * c], -1).flatten(-2)


def node(n, values, types, sizes):
    op, attrs, args = n["op"], n["attrs"], n["args"]
    out = n["results"][0]
    to = names(out)
    xs = [values[a] for a in args]
    ax = [names(types[a]) for a in args]
    aligned = lambda: [align(x, a, to) for x, a in zip(xs, ax)]
    if op == "const":
        v = attrs["value"]
        return torch.tensor(float(size(v, sizes) if isinstance(v, str) else v), dtype=torch.float64, device=DEVICE)
    if op in VALUE: return VALUE[op](xs[0])
    if op.endswith("_grad") and op[:-5] in SLOPE: return SLOPE[op[:-5]](xs[0]) * align(xs[1], ax[1], ax[0])
    if op in BINARY: return BINARY[op](*aligned())
    if op == "affine": return xs[0] * attrs["mul"] + attrs["add"]
    if op == "clamp": return xs[0].clamp(attrs["low"], attrs["high"])
    if op == "clamp_grad": return torch.where((xs[0] >= attrs["low"]) & (xs[0] <= attrs["high"]), xs[1], 0.0)
    if op == "where":
        c, a, b = aligned()
        return torch.where(c, a, b)
    if op == "cast": return xs[0].double() if attrs["to"] != "bool" else xs[0] != 0
    if op in ("stop_gradient", "rename"): return xs[0]
    if op in ("split", "merge"): return xs[0].reshape(shape(out, sizes))
    if op == "permute": return align(xs[0], ax[0], to)
    if op == "broadcast": return align(xs[0], ax[0], to).expand(shape(out, sizes))
    if op in ("sum", "mean", "logsumexp"):
        dims = [ax[0].index(a) for a in attrs["over"]]
        return {"sum": torch.sum, "mean": torch.mean, "logsumexp": torch.logsumexp}[op](xs[0], dims)
    if op == "contract":
        every = list(dict.fromkeys(ax[0] + ax[1]))
        letters = {a: chr(97 + i) for i, a in enumerate(every)}
        word = lambda axes: "".join(letters[a] for a in axes)
        return torch.einsum(f"{word(ax[0])},{word(ax[1])}->{word(to)}", *xs)
    if op.startswith("causal_conv"):
        x, w = xs
        t = x.shape[1]
        if op == "causal_conv_weight_grad":
            taps = size(attrs["taps"][0][1], sizes)
            padded = torch.nn.functional.pad(x, (0, 0, taps - 1, 0))
            return torch.stack([(padded[:, i:i + t] * w).sum((0, 1)) for i in range(taps)], -1)
        taps, ahead = w.shape[1], op == "causal_conv_input_grad"
        padded = torch.nn.functional.pad(x, (0, 0, 0, taps - 1) if ahead else (0, 0, taps - 1, 0))
        start = (lambda i: taps - 1 - i) if ahead else (lambda i: i)
        return sum(padded[:, start(i):start(i) + t] * w[:, i] for i in range(taps))
    if op == "rotary":
        time = ax[0].index(attrs["time"])
        x = xs[0].movedim(time, 0)
        position = torch.arange(x.shape[0], dtype=torch.float64, device=x.device)
        return rotary(x, position, attrs["base"], attrs["inverse"] in (True, "true")).movedim(0, time)
    if op == "sinkhorn": return sinkhorn(xs[0], attrs["iterations"], attrs["eps"])
    if op == "sinkhorn_grad":
        with torch.enable_grad():
            x = xs[0].detach().requires_grad_()
            k = x - x.gather(-1, x.argmax(-1, keepdim=True))
            y = sinkhorn(k, attrs["iterations"], attrs["eps"])
            # The row maximum of `sinkhorn` is 0 here: its gradient goes to the element itself.
            return torch.autograd.grad(y, x, xs[1])[0]
    if op == "gather_sum":
        table, index = torch.cat([xs[0], torch.zeros_like(xs[0][:1])]), xs[1].long()
        # A slot that names none names a row of zeros.
        total = torch.zeros(*index.shape[:-1], table.shape[1], dtype=table.dtype, device=table.device)
        for slot in index.clamp(min=-1).unbind(-1): total += table[slot]
        return total
    sys.exit(f"no reference for {op}")


def reference(kernel, inputs, sizes):
    types = {v["id"]: v for v in kernel["inputs"]}
    values = {v["id"]: x.double() if x.is_floating_point() else x for v, x in zip(kernel["inputs"], inputs)}
    for n in kernel["nodes"]:
        out = n["results"][0]
        x = node(n, values, types, sizes)
        if out["dtype"] == "act": x = x.to(torch.bfloat16).double()
        values[out["id"]], types[out["id"]] = x, out
    return values


# ---- running ---------------------------------------------------------------------------------------------------------

def positive(kernel):
    """Inputs of functions that take positive numbers only."""
    found = set()
    for n in reversed(kernel["nodes"]):
        passes = n["op"] in ("affine", "cast", "rename", "split", "merge", "permute") and n["results"][0]["id"] in found
        if passes or n["op"] in ("rsqrt", "ln", "sqrt", "rsqrt_grad", "ln_grad", "sqrt_grad"): found.add(n["args"][0])
    return found


def gathered(kernel):
    """Inputs that name rows of a table: their number of rows."""
    tables = {v["id"]: v for n in kernel["nodes"] for v in n["results"]} | {v["id"]: v for v in kernel["inputs"]}
    rows = lambda n: dict(tables[n["args"][0]]["axes"])[n["attrs"]["rows"]]
    return {n["args"][1]: rows(n) for n in kernel["nodes"] if n["op"] == "gather_sum"}


def draw_index(shape, rows, generator):
    """Rows of a table, some of them named twice, among slots that name none: first or last or anywhere, or all."""
    draw = lambda low, high, shape: torch.randint(low, high, shape, generator=generator, device=DEVICE)
    index, front = draw(0, rows, shape), shape[:-1] + [1]
    index = torch.where(draw(0, 4, shape) == 0, index[..., :1], index)
    slots, kind, n = torch.arange(shape[-1], device=DEVICE), draw(0, 5, front), draw(0, shape[-1] + 1, front)
    none = torch.where(kind < 2, slots >= n, torch.where(kind == 2, slots < n, draw(0, 3, shape) == 0))
    return torch.where(none | (kind == 4), -1 - draw(0, 2, shape) * (1 << 40), index)


def draw(kernel, sizes, generator):
    above, named = positive(kernel), gathered(kernel)
    inputs = []
    for value in kernel["inputs"]:
        if value["dtype"] == "index" and value["id"] not in named:
            inputs.append(torch.randint(0, 33, shape(value, sizes), generator=generator, device=DEVICE))
            continue
        if value["id"] in named:
            inputs.append(draw_index(shape(value, sizes), size(named[value["id"]], sizes), generator))
            continue
        x = torch.randn(shape(value, sizes), generator=generator, device=DEVICE)
        if value["id"] in above: x = x.abs() + 0.1
        inputs.append(x > 0 if value["dtype"] == "bool" else x.to(KIND[value["dtype"]]))
    return inputs


def angles(table, sizes):
    steps, width = size(table["steps"], sizes), table["width"]
    i = torch.arange(0, width, 2, dtype=torch.float64, device=DEVICE)
    angle = torch.arange(steps, dtype=torch.float64, device=DEVICE)[:, None] * table["base"] ** (-i / width)
    return torch.stack([angle.cos(), angle.sin()], -1).float().contiguous()


class Run:
    """One kernel with its inputs and outputs, ready to be launched."""
    def __init__(self, kernel, inputs, sizes, device):
        self.kernel, self.device = kernel, device
        rows = size(kernel["rows"], sizes)
        groups = kernel["groups"]
        span = groups * max(1, -(-rows // (groups * kernel["blocks"])))
        self.grid = (max(1, -(-rows // span)), kernel["tiles"], 1)
        empty = lambda v: torch.empty(shape(v, sizes), dtype=KIND[v["dtype"]], device=DEVICE)
        self.writes = [(v["id"], empty(v)) for v in kernel["writes"]]
        self.sums = []
        for s in kernel["sums"]:
            lines = self.grid[0] * s["parts"] * s["outer"]
            part = torch.empty(lines, s["columns"], device=DEVICE)
            scale = 1.0 / size(s["mean_of"], sizes) if s["mean_of"] else 1.0
            self.sums.append((s, part, empty(s["value"]), lines, scale))
        tables = [angles(a, sizes) for a in kernel["angles"]]
        args = [*inputs, *tables, *[x for _, x in self.writes], *[s[1] for s in self.sums], rows, span]
        args += [sizes[name] for name in kernel["symbols"]]
        self.launches = [device.bind(kernel["entry"], self.grid, kernel["threads"], kernel["shared"], *args)]
        for s, part, out, lines, scale in self.sums:
            entry = "rows_finish_" + s["value"]["dtype"]
            grid = (-(-s["columns"] // 32), 1, 1)
            self.launches.append(device.bind(entry, grid, 1024, 0, part, out, lines, s["columns"], scale))
        self.bytes = sum(x.numel() * x.element_size() for x in [*inputs, *tables, *[o for _, o in self.outputs()]])

    def outputs(self):
        return [*self.writes, *[(s["value"]["id"], out) for s, _, out, _, _ in self.sums]]

    def poison(self):
        for x in [*[x for _, x in self.outputs()], *[s[1] for s in self.sums]]:
            x.view(-1).view(torch.uint8).fill_(0xFF)

    def launch(self):
        for launch in self.launches: launch()

    def results(self):
        self.poison()
        self.launch()
        self.device.wait()
        return {i: x.clone() for i, x in self.outputs()}


class Host:
    """Kernels as functions of the CPU."""
    def __init__(self, text):
        text = text.replace("extern __shared__ float kept[];", "float* const kept = dynamic_shared;")
        entries = re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\) (\w+)\((.*?)\) \{', text, re.S)
        calls = []
        for name, params in entries:
            types = [re.sub(r"\b(\w+)$", "", p.strip().replace("__restrict__", "")).strip() for p in params.split(",")]
            args = ", ".join(f"*({t.removeprefix('const ') if '*' not in t else t}*)a[{i}]" for i, t in enumerate(types))
            calls.append(f'extern "C" void run_{name}(void** a, int x, int y, int b) {{ body = [=] {{ {name}({args}); }}; run_grid(x, y, b); }}')
        folder = tempfile.mkdtemp()
        source, library = os.path.join(folder, "rows.cpp"), os.path.join(folder, "rows.so")
        open(source, "w").write('#include "rows_host.h"\n' + text + "\n" + "\n".join(calls))
        subprocess.run(["g++", "-std=c++17", "-O1", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", "-I" + HERE, source, "-o", library], check=True)
        self.library = ctypes.CDLL(library)

    def bind(self, entry, grid, block, shared, *args):
        keep = []
        for a in args:
            if isinstance(a, torch.Tensor): keep.append(ctypes.c_void_p(a.data_ptr()))
            elif isinstance(a, float): keep.append(ctypes.c_float(a))
            else: keep.append(ctypes.c_int(a))
        array = (ctypes.c_void_p * len(keep))(*(ctypes.addressof(k) for k in keep))
        function = getattr(self.library, "run_" + entry)
        return lambda _keep=(keep, args): function(array, grid[0], grid[1], block)

    def wait(self):
        pass


def device(text):
    from tiles import Module
    with tempfile.NamedTemporaryFile("w", suffix=".cu", delete=False) as f:
        f.write(text)
    made = Module(f.name)
    made.wait = torch.cuda.synchronize
    return made


# Largest relative error of a result: of class `act`, where one rounding can fall the other way, and of 32 bits.
LIMIT = {"act": 3e-3, "f32": 2e-3, "bool": 0.0}


def check(kernel, device, sizes, seed, unchecked):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    inputs = draw(kernel, sizes, generator)
    run = Run(kernel, inputs, sizes, device)
    if unchecked: return run, math.nan, []
    first, again = run.results(), run.results()
    wanted = reference(kernel, inputs, sizes)
    dtypes = {v["id"]: v["dtype"] for v in kernel["writes"] + [s["value"] for s in kernel["sums"]]}
    worst, faults = 0.0, []
    for i, x in first.items():
        if not torch.equal(x.view(-1).view(torch.uint8), again[i].view(-1).view(torch.uint8)): faults.append(f"%{i} differs in a second run")
        y = wanted[i].double()
        error = float((x.double() - y).norm() / y.norm().clamp(min=1e-30))
        if not error <= LIMIT[dtypes[i]]: faults.append(f"%{i} is off by {error:.1e}")
        worst = max(worst, error)
    return run, worst, faults


def clock(run, flush, times=9):
    spans = []
    for _ in range(times):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run.launch()
        end.record()
        torch.cuda.synchronize()
        spans.append(start.elapsed_time(end))
    return statistics.median(spans)


def main():
    global DEVICE
    p = argparse.ArgumentParser()
    p.add_argument("text"), p.add_argument("json")
    p.add_argument("--host", action="store_true"), p.add_argument("--time", action="store_true")
    p.add_argument("--unchecked", action="store_true", help="time alone: for comparing shapes of one kernel")
    p.add_argument("--only", default=""), p.add_argument("--sizes", action="append")
    o = p.parse_args()
    DEVICE = "cpu" if o.host else "cuda"
    torch.set_grad_enabled(False)
    # Kernels with the step of a reversible stack, which come last, are no nodes alone.
    text, kernels = open(o.text).read().split('#include "fixed.cuh"')[0], json.load(open(o.json))
    kernels = [k for k in kernels if re.search(o.only, k["entry"])]
    if o.only:
        head, *rest = re.split(r"(?m)^(?=// \w+_k\d+$)", text)
        text = head + "".join(r for r in rest if re.search(o.only, r.split("\n")[0]))
    made = Host(text) if o.host else device(text)
    if o.time:
        flush = torch.empty(256 << 20, dtype=torch.uint8, device=DEVICE)
        a, b = (torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2))
        class Copy: launch = staticmethod(lambda: b.copy_(a))
        rate = 2 * a.numel() / clock(Copy, flush) / 1e6
        print(f"{torch.cuda.get_device_name()}, copy {rate:.0f} GB/s")
    red = 0
    for spec in o.sizes or ["b=1,t=8192"]:
        sizes = Sizes({k: int(v) for k, v in (pair.split("=") for pair in spec.split(","))})
        for n, kernel in enumerate(kernels):
            run, worst, faults = check(kernel, made, sizes, n, o.unchecked)
            line = f"{kernel['entry']:44s} {spec:12s} error {worst:.1e} "
            if faults:
                red += 1
                line += "RED " + "; ".join(faults)
            elif o.time:
                ms = clock(run, flush)
                line += f"{ms * 1e3:8.1f} us  {run.bytes / 1e6:8.1f} MB  {run.bytes / ms / 1e6:6.0f} GB/s  {run.bytes / ms / 1e6 / rate:4.0%} of copy"
            else:
                line += "green"
            print(line, flush=True)
            del run
    print(f"{red} red")
    sys.exit(red > 0)


if __name__ == "__main__":
    main()
