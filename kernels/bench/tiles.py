"""Checks the tile kernels against references in higher precision, then times them. Needs one sm_90a GPU and torch.

    python3 tiles.py [gdn] [index] [attention] [lce] [--check-only] [--profile]

Each check draws fresh inputs, poisons every output with NaN first, and runs twice for bit equality. A kernel whose
check fails is not timed.
"""
import ctypes, math, os, statistics, sys, time
import torch
import reference as ref
from compile import compile_cubin, KERNELS

dev = "cuda"
bf = torch.bfloat16
cuda = ctypes.CDLL("libcuda.so.1")


def ck(code, what):
    if code:
        s = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(s))
        raise RuntimeError(f"{what}: {s.value.decode() if s.value else code}")


class TensorMap(ctypes.Structure):
    _fields_ = [("opaque", ctypes.c_uint64 * 16)]


def tensor_map(x, box_rows):
    """x [B,T,H,D] bf16 contiguous -> map (D, H, T, B), box (64, 1, box_rows, 1), 128-byte swizzle."""
    B, T, H, D = x.shape
    buf = ctypes.create_string_buffer(128 + 64)
    addr = (ctypes.addressof(buf) + 63) // 64 * 64
    u64, u32 = ctypes.c_uint64, ctypes.c_uint32
    ck(cuda.cuTensorMapEncodeTiled(ctypes.c_void_p(addr), 9, 4, ctypes.c_void_p(x.data_ptr()), (u64 * 4)(D, H, T, B),
                                   (u64 * 3)(2 * D, 2 * D * H, 2 * D * H * T), (u32 * 4)(64, 1, box_rows, 1), (u32 * 4)(1, 1, 1, 1),
                                   0, 3, 2, 0), "cuTensorMapEncodeTiled")
    m = TensorMap()
    ctypes.memmove(ctypes.addressof(m), addr, 128)
    return m


class Module:
    def __init__(self, name, defines=()):
        torch.zeros(1, device=dev)
        cubin, self.log = compile_cubin(os.path.join(KERNELS, name), defines)
        self.mod, self.fns = ctypes.c_void_p(), {}
        ck(cuda.cuModuleLoadData(ctypes.byref(self.mod), cubin), name)

    def prepare(self, fn, smem):
        if fn not in self.fns:
            f = ctypes.c_void_p()
            ck(cuda.cuModuleGetFunction(ctypes.byref(f), self.mod, fn.encode()), fn)
            if smem > 48 * 1024:
                ck(cuda.cuFuncSetAttribute(f, 8, smem), fn + " shared memory")
            self.fns[fn] = f
        return self.fns[fn]

    def bind(self, fn, grid, block, smem, *args):
        """A launch with its arguments packed once."""
        f, keep = self.prepare(fn, smem), []
        for a in args:
            if isinstance(a, torch.Tensor): keep.append(ctypes.c_void_p(a.data_ptr()))
            elif isinstance(a, float): keep.append(ctypes.c_float(a))
            elif isinstance(a, int): keep.append(ctypes.c_int(a))
            else: keep.append(a)
        array = (ctypes.c_void_p * len(keep))(*(ctypes.addressof(k) for k in keep))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

        def launch(_keep=(keep, args)):
            ck(cuda.cuLaunchKernel(f, *grid, block, 1, 1, smem, stream, array, None), fn)
        return launch


def poison(*xs):
    for x in xs:
        x.view(torch.uint8).fill_(0xFF)


def err(a, b):
    a, b = a.double(), b.double()
    e = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
    return e if e == e else float("inf")


def timed(fn, n=25, cold=True):
    """(median, min, max) ms over n launches; the L2 is flushed before each when cold."""
    flush = torch.empty(128 << 20, dtype=torch.uint8, device=dev)
    for _ in range(3): fn()
    out = []
    for _ in range(n):
        if cold: flush.zero_()
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); fn(); b.record()
        torch.cuda.synchronize()
        out.append(a.elapsed_time(b))
    return statistics.median(out), min(out), max(out)


def line(name, t, flops=0.0, bytes_=0.0, goal=None, must=None):
    print(f"TIME {name:44s} {t[0]:8.3f} ms [{t[1]:.3f} {t[2]:.3f}] {flops/t[0]/1e9:7.1f} TFLOP/s {bytes_/t[0]/1e6:6.0f} GB/s"
          + (f"  goal {goal} must {must}" if goal else ""), flush=True)


def pick(args, *shapes):
    """The shapes to check; the second entry of each is the length that --small bounds."""
    return [s for s in shapes if not args.small or s[1] <= 700]


def gate(name, errors, limit):
    bad = {k: v for k, v in errors.items() if not v <= (limit[k] if isinstance(limit, dict) else limit)}
    print(("RED  " if bad else "ok   ") + name + "  " + " ".join(f"{k} {v:.1e}" for k, v in errors.items()), flush=True)
    return not bad


# ---------------------------------------------------------------- gated delta rule
class Gdn:
    PANEL = 8192
    PREPARE, SCAN, BACK, CHUNK = 4 * 8192, 3 * (7 * 8192 + 1024) + 4 * 8192 + 128, 3 * (8 * 8192 + 1024) + 3 * 8192 + 128, 14 * 8192 + 64

    def __init__(self, mod, B, T, H):
        self.mod, self.B, self.T, self.H, self.N = mod, B, T, H, (T + 63) // 64
        n = B * H * self.N
        u = lambda size: torch.empty(n * size, dtype=torch.uint8, device=dev)
        self.vec, self.m, self.p = torch.empty(n * 320, device=dev), u(8192), u(8192)
        self.states, self.dstates, self.news, self.ys = u(32768), u(32768), u(16384), u(16384)
        x = lambda: torch.empty(B, T, H, 128, dtype=bf, device=dev)
        self.o, self.dq, self.dk, self.dv = x(), x(), x(), x()
        self.dg, self.db = torch.empty(B, T, H, device=dev), torch.empty(B, T, H, device=dev)

    def outputs(self):
        return dict(o=self.o, dq=self.dq, dk=self.dk, dv=self.dv, dg=self.dg, db=self.db)

    def bind(self, q, k, v, g, b, do):
        M, B, T, H, N = self.mod, self.B, self.T, self.H, self.N
        tm = lambda x: tensor_map(x, 64)
        tq, tk, tv, tdo = tm(q), tm(k), tm(v), tm(do)
        self.keep = (q, k, v, g, b, do)
        self.prepare = M.bind("gdn_prepare", (H, N, B), 128, self.PREPARE, tq, tk, g, b, self.vec, self.m, self.p, T, H)
        fw = (tq, tk, tv, self.vec, self.m, self.p, self.o, self.states, self.news, T, H)
        self.scan = M.bind("gdn_forward", (2 * H, B, 1), 384, self.SCAN, *fw)
        self.scan_save = M.bind("gdn_forward_save", (2 * H, B, 1), 384, self.SCAN, *fw)
        self.back = M.bind("gdn_backward", (2 * H, B, 1), 256, self.BACK, tq, tk, tdo, self.vec, self.m, self.p, self.dstates, self.ys, T, H)
        self.chunk = M.bind("gdn_backward_chunk", (H, N, B), 256, self.CHUNK, tq, tk, tdo, tm(self.dq), tm(self.dk), v, self.vec, self.p,
                            self.states, self.dstates, self.news, self.ys, self.dv, self.dg, self.db, T, H)

    def forward(self): self.prepare(); self.scan()
    def both(self): self.prepare(); self.scan_save(); self.back(); self.chunk()


def gdn_inputs(B, T, H, decay=1.0):
    r = lambda *s: torch.randn(*s, device=dev)
    nrm = torch.nn.functional.normalize
    q, k = nrm(r(B, T, H, 128), dim=-1).to(bf), nrm(r(B, T, H, 128), dim=-1).to(bf)
    if decay == 0.0:  # long memory and correlated keys: the hard case of the inverse
        k = nrm(k.float() * 0.5 + nrm(r(B, 1, H, 128), dim=-1), dim=-1).to(bf)
        g = -1e-3 * torch.rand(B, T, H, device=dev)
    else:
        g = torch.nn.functional.logsigmoid(decay * r(B, T, H))
    return q, k, r(B, T, H, 128).to(bf), g, torch.rand(B, T, H, device=dev), r(B, T, H, 128).to(bf)


def gdn(args):
    M = Module("gated_delta_rule.cu")
    good = True
    for B, T, H, decay in pick(args, (1, 1, 2, 1.0), (2, 100, 3, 1.0), (1, 8190, 2, 1.0), (1, 1000, 2, 0.0), (1, 4096, 1, 0.0), (1, 1024, 2, 40.0), (1, 8192, 4, 1.0)):
        x = gdn_inputs(B, T, H, decay)
        G = Gdn(M, B, T, H)
        G.bind(*x)
        runs = []
        for _ in range(2):
            poison(G.vec, G.m, G.p, G.states, G.dstates, G.news, G.ys, *G.outputs().values())
            G.forward()
            o = G.o.clone()
            poison(G.o)
            G.both()
            torch.cuda.synchronize()
            runs.append({k: v.clone() for k, v in G.outputs().items()})
        same = all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0]) and torch.equal(o, runs[1]["o"])
        d = [y.double() for y in x]
        want = {k: [] for k in runs[0]}
        for i in range(B):
            one = [y[i] for y in d]
            want["o"].append(ref.gated_delta_rule(*one[:5]))
            for k, y in zip(("dq", "dk", "dv", "dg", "db"), ref.gated_delta_rule_grad(*one)): want[k].append(y)
        e = {k: err(runs[0][k], torch.stack(v)) for k, v in want.items()}
        e["repeat"] = 0.0 if same else 9.9
        tol = dict(o=8e-3, dq=1e-2, dk=1.2e-2, dv=1e-2, dg=2e-2, db=1.2e-2, repeat=0)
        if T == 1: tol = {k: 8 * v for k, v in tol.items()}  # single dot products: rounding relative to a sum that may cancel
        if decay == 0.0: tol = {k: 4 * v for k, v in tol.items()}
        good &= gate(f"gated delta rule B={B} T={T} H={H} decay {decay}", e, tol)
    if args.check_only or not (good or args.force): return
    B, T, H = 1, 8192, 32
    x = gdn_inputs(B, T, H)
    G = Gdn(M, B, T, H)
    G.bind(*x)
    G.both()
    by = 2 * T * 4096
    for name, f, n in (("prepare", G.prepare, 3), ("scan", G.scan, 6), ("scan, saving", G.scan_save, 9), ("backward scan", G.back, 7),
                       ("backward chunks", G.chunk, 12.5)):
        line("  gated delta rule " + name, timed(f), bytes_=n * by)
    line("gated delta rule fwd", timed(G.forward), flops=47e9, bytes_=4 * by, goal=0.24, must=0.40)
    line("gated delta rule fwd+bwd", timed(G.both), flops=185e9, bytes_=12 * by, goal=0.80, must=1.6)


# ---------------------------------------------------------------- indexer
class Indexer:
    SCORE = 8 * 128 * 128 + 3 * 2 * 64 * 128 + 128

    def __init__(self, mod, B, T, sinks=4, base=128.0, low=32.0, high=256.0, limit=256):
        self.B, self.T, self.mod = B, T, mod
        self.ld, self.words = (T + 63) // 64 * 64, (T + 63) // 64 * 2
        self.score = torch.empty(B, T, self.ld, device=dev)
        self.mask = torch.empty(B, T, self.words, dtype=torch.int32, device=dev)
        self.var, self.n = torch.empty(B, T, device=dev), torch.empty(B, T, dtype=torch.int32, device=dev)
        self.p = (base, low, high, sinks, limit)

    def bind(self, q, k, heed, bias, ema):
        B, T = self.B, self.T
        self.keep = (q, k, heed, bias, ema)
        if q is not None:
            self.scores = self.mod.bind("indexer_score", ((T + 1023) // 1024, (T + 127) // 128, B), 288, self.SCORE,
                                        tensor_map(q, 128), tensor_map(k.view(B, T, 1, 128), 64), heed, bias, 128 ** -0.5, self.score, T, self.ld)
        self.select = self.mod.bind("indexer_select", (T, B, 1), 256, 4 * (self.ld + self.words), self.score, ema, *self.p, self.mask, self.var, self.n, T, self.ld, self.words)

    def run(self): self.scores(); self.select()


def bits(mask, T):
    sh = torch.arange(32, device=dev, dtype=torch.int32)
    return ((mask[..., None] >> sh) & 1).bool().flatten(-2)[..., :T]


def pack(mask):
    T = mask.shape[-1]
    w = (T + 63) // 64 * 2
    m = torch.nn.functional.pad(mask, (0, w * 32 - T)).unflatten(-1, (w, 32)).long() << torch.arange(32, device=dev)
    m = m.sum(-1)
    return torch.where(m >= 2 ** 31, m - 2 ** 32, m).to(torch.int32)


def index_inputs(B, T):
    r = lambda *s: torch.randn(*s, device=dev)
    return r(B, T, 4, 128).to(bf), r(B, T, 128).to(bf), torch.sigmoid(r(B, T, 4)), 0.3 * r(4), torch.full((1,), 0.12, device=dev)


def check_selection(I, name, e):
    T = I.T
    base, low, high, sinks, limit = I.p
    for b in range(I.B):
        s = I.score[b, :, :T].tril()
        var, want = ref.budgets(s, I.keep[4].item(), base, low, high)
        col = torch.arange(T, device=dev)
        want = torch.minimum(want.clamp(min=1).clamp(max=limit), col + 1)
        e["var"] = max(e.get("var", 0), err(I.var[b], var) if T > 1 else 0.0)
        edge = base * var / max(I.keep[4].item(), 1e-6)
        off = (I.n[b] != want) & ((edge - edge.round()).abs() > 1e-3)
        e["budget"] = e.get("budget", 0) + off.sum().item()
        picked = ref.select_top(s, I.n[b].long(), sinks, T)
        e["mask"] = e.get("mask", 0) + (bits(I.mask[b], T) != picked).sum().item()
    return e


def index(args):
    M = Module("select_top.cu")
    good = True
    for B, T in pick(args, (1, 1), (2, 100), (1, 1000), (1, 8190), (1, 8192)):
        x = index_inputs(B, T)
        I = Indexer(M, B, T)
        I.bind(*x)
        runs = []
        for _ in range(2):
            poison(I.score, I.mask, I.var, I.n)
            I.run()
            torch.cuda.synchronize()
            runs.append((I.mask.clone(), I.var.clone(), I.n.clone()))
        e = dict(score=0.0)
        for b in range(B):
            want = ref.indexer_score(*(y[b].double() for y in x[:3]), x[3].double(), 128 ** -0.5)
            e["score"] = max(e["score"], (I.score[b, :, :T].tril().double() - want).abs().max().item())
        check_selection(I, "", e)
        e["repeat"] = 0.0 if all(torch.equal(a, b) for a, b in zip(*runs)) else 9.9
        good &= gate(f"indexer B={B} T={T} (mean selected {I.n.float().mean().item():.1f})", e, dict(score=2e-5, var=1e-5, budget=0, mask=0, repeat=0))
    # Ties: few distinct scores, all equal, and scores with a huge range.
    T = 300 if args.small else 3000
    for name, s in (("few values", torch.randint(0, 5, (T, T), device=dev).float() / 4), ("all equal", torch.full((T, T), 0.25, device=dev)),
                    ("wide range", torch.exp(8 * torch.randn(T, T, device=dev))), ("negative", torch.randn(T, T, device=dev))):
        I = Indexer(M, 1, T)
        I.bind(None, None, None, None, torch.full((1,), 0.05, device=dev))
        I.score[0, :, :T] = s
        poison(I.mask, I.var, I.n)
        I.select()
        torch.cuda.synchronize()
        good &= gate(f"selection, {name} (mean selected {I.n.float().mean().item():.1f})", check_selection(I, "", {}), dict(var=1e-4, budget=0, mask=0))
    if args.check_only or not (good or args.force): return
    T = 8192
    I = Indexer(M, 1, T)
    I.bind(*index_inputs(1, T))
    I.run()
    line("  indexer scores", timed(I.scores), flops=34e9, bytes_=2 * T * T)
    line("  indexer selection", timed(I.select), bytes_=2 * T * T)
    line("indexer scores + selection", timed(I.run), flops=34e9, bytes_=4 * T * T, goal=0.40, must=0.8)


# ---------------------------------------------------------------- masked attention
class Attention:
    def __init__(self, mod, B, T, H, mask, D=256):
        self.B, self.T, self.H, n = B, T, H, (T + 63) // 64
        tile = 128 * D
        self.FORWARD, self.KEYS, self.QUERIES = 6 * tile + 128, 6 * tile + 3 * 8192 + 2 * 512 + 128, 4 * (tile + 2 * 8192) + 128
        u = lambda *s: torch.empty(*s, dtype=torch.int32, device=dev)
        self.mask, self.tiles, self.trans = mask, u(B, n, (n + 31) // 32), u(B, n * 64, 2 * n)
        self.lse, self.delta = torch.empty(B, H, n * 64, device=dev), torch.empty(B, H, n * 64, device=dev)
        self.ds = torch.empty(B * H * (n * (n + 1) // 2) * 8192, dtype=torch.uint8, device=dev)
        x = lambda: torch.empty(B, T, H, D, dtype=bf, device=dev)
        self.o, self.dq, self.dk, self.dv = x(), x(), x(), x()
        self.mod, self.n = mod, n

    def bind(self, q, k, v, do, scale):
        B, T, H, n, b = self.B, self.T, self.H, self.n, self.mod.bind
        self.keep = (q, k, v, do)
        tm = lambda x: tensor_map(x, 64)
        w, tw, s2 = 2 * n, (n + 31) // 32, scale * math.log2(math.e)
        self.cut = b("mask_tiles", (n, tw, B), 256, 0, self.mask, self.tiles, self.trans, T, w, tw)
        self.forward = b("attention_forward", ((T + 127) // 128, H, B), 384, self.FORWARD, tensor_map(q, 128), tm(k), tm(v), tm(self.o),
                         self.mask, self.tiles, s2, self.lse, T, H, w, tw)
        self.rowsum = b("attention_delta", (n * 64 * H // 8, B, 1), 256, 0, self.o, do, self.delta, T, H)
        self.keys = b("attention_backward_keys", (n, H, B), 384, self.KEYS, tm(q), tm(k), tm(v), tm(do), tm(self.dk), tm(self.dv),
                      self.trans, self.tiles, self.lse, self.delta, s2, scale, self.ds, T, H, w, tw)
        self.queries = b("attention_backward_queries", ((n + 1) // 2, H, B), 384, self.QUERIES, tm(k), tm(self.dq), self.tiles, self.ds,
                         scale, T, H, tw)

    def fwd(self): self.cut(); self.forward()
    def both(self): self.cut(); self.forward(); self.rowsum(); self.keys(); self.queries()
    def outputs(self): return dict(o=self.o, dq=self.dq, dk=self.dk, dv=self.dv)


def causal_mask(B, T, kind):
    col = torch.arange(T, device=dev)
    causal = (col[None] <= col[:, None]).expand(B, T, T)
    if kind == "causal": return causal.contiguous()
    if kind == "scattered": return causal & (torch.rand(B, T, T, device=dev) < 256 / max(T, 256))
    near = (col[:, None] - col[None] < 70) | (col[None] < 4)
    m = causal & near & (torch.rand(B, T, T, device=dev) < 0.5)
    m[:, 5::11] = False  # rows that allow nothing
    return m


def attention(args):
    mods = {D: Module("masked_attention.cu", [f"ATTENTION_DIM={D}"]) for D in (64, 128, 256)}
    M = mods[256]
    good = True
    for B, T, H, kind, D in pick(args, (1, 1, 1, "causal", 256), (2, 100, 3, "near", 256), (2, 300, 2, "scattered", 64), (1, 500, 3, "near", 128),
                                 (1, 1000, 2, "scattered", 256), (2, 641, 2, "near", 256), (1, 8190, 1, "scattered", 256), (1, 8192, 1, "near", 256)):
        r = lambda: torch.randn(B, T, H, D, device=dev).to(bf)
        q, k, v, do = r(), r(), r(), r()
        mask = causal_mask(B, T, kind)
        A = Attention(mods[D], B, T, H, pack(mask), D)
        A.bind(q, k, v, do, 1 / 16)
        runs = []
        for _ in range(2):
            poison(A.tiles, A.trans, A.lse, A.delta, A.ds, *A.outputs().values())
            A.both()
            torch.cuda.synchronize()
            runs.append({x: y.clone() for x, y in A.outputs().items()})
        e = {}
        for b in range(B):
            x = [y[b].double().requires_grad_(True) for y in (q, k, v)]
            o, lse = ref.masked_attention(*x, mask[b], 1 / 16)
            o = torch.nan_to_num(o)
            o.backward(do[b].double())
            for name, mine, want in (("o", runs[0]["o"], o), ("dq", runs[0]["dq"], x[0].grad), ("dk", runs[0]["dk"], x[1].grad), ("dv", runs[0]["dv"], x[2].grad)):
                e[name] = max(e.get(name, 0), err(mine[b], want) if T > 1 or name in "odv" else mine[b].double().abs().max().item())
            live = mask[b].any(-1)
            e["lse"] = max(e.get("lse", 0), err(A.lse[b, :, :T][:, live] * math.log(2), lse[:, live]))
            del o, lse, x
        e["repeat"] = 0.0 if all(torch.equal(runs[0][x], runs[1][x]) for x in runs[0]) else 9.9
        good &= gate(f"masked attention B={B} T={T} H={H} D={D} {kind}", e, dict(o=6e-3, dq=1e-2, dk=1e-2, dv=1e-2, lse=1e-4, repeat=0))
        torch.cuda.empty_cache()
    if args.check_only or not (good or args.force): return
    T, H = 8192, 16
    fl = 4 * (T * T / 2) * H * 256
    for kind in ("selected", "near"):
        r = lambda: torch.randn(1, T, H, 256, device=dev).to(bf)
        if kind == "selected":  # what the indexer picks on random inputs, 256 of every row
            I = Indexer(Module("select_top.cu"), 1, T, low=256.0)
            I.bind(*index_inputs(1, T))
            I.run()
            mask = I.mask.clone()
            del I
        else: mask = pack(causal_mask(1, T, kind))
        A = Attention(M, 1, T, H, mask)
        A.bind(r(), r(), r(), r(), 1 / 16)
        A.both()
        n = A.n
        share = sum(bin(x & 0xFFFFFFFF).count("1") for x in A.tiles.flatten().tolist()) / (n * (n + 1) / 2)
        print(f"     mask {kind}: {share:.3f} of the causal tiles hold a bit; rates count the dense causal half")
        line("  mask tiles", timed(A.cut), bytes_=T * T / 4)
        line("  attention forward", timed(A.forward), flops=fl)
        line("  attention delta", timed(A.rowsum), bytes_=4 * T * H * 256)
        line("  attention backward, keys", timed(A.keys), flops=2 * fl)
        line("  attention backward, queries", timed(A.queries), flops=fl / 2)
        line("masked attention fwd", timed(A.fwd), flops=fl, goal=1.0, must=1.3)
        line("masked attention fwd+bwd", timed(A.both), flops=3.5 * fl, goal=4.2, must=5.5)


# ---------------------------------------------------------------- linear cross entropy
class Lce:
    def __init__(self, mod, N, V, rows):
        self.mod, self.N, self.V, self.rows = mod, N, V, min(rows, N)
        self.logits = torch.empty(self.rows, V, dtype=bf, device=dev)
        self.loss, self.inverse, self.total = torch.empty(N, device=dev), torch.empty(1, device=dev), torch.empty(1, device=dev)

    def bind(self, h, w, y, cap):
        self.h, self.w, self.y = h, w, y
        self.dh, self.dw = torch.empty_like(h), torch.empty_like(w)
        b = self.mod.bind
        self.count = b("lce_count", (1, 1, 1), 1024, 0, y, self.inverse, self.N)
        self.sum = b("lce_total", (1, 1, 1), 1024, 0, self.loss, self.inverse, self.total, self.N)
        self.parts = []
        for r in range(0, self.N, self.rows):
            n = min(self.rows, self.N - r)
            self.parts.append((r, n, b("lce_rows", (n, 1, 1), 512, 12 * 512 * 16, self.logits, y[r:], self.inverse, cap, 1.0, self.loss[r:], self.V)))

    def run(self):
        self.count()
        for r, n, rows in self.parts:
            z, h = self.logits[:n], self.h[r:r + n]
            torch.mm(h, self.w.t(), out=z)
            rows()
            torch.mm(z, self.w, out=self.dh[r:r + n])
            if r == 0: torch.mm(z.t(), h, out=self.dw)
            else: self.dw.addmm_(z.t(), h)
        self.sum()


def lce(args):
    M = Module("linear_cross_entropy.cu")
    good = True
    for V, N, D, rows, cap in pick(args, (1024, 1, 64, 64, 15.0), (4096, 100, 128, 32, 0.0), (131072, 2000, 64, 512, 15.0), (8192, 333, 256, 512, 60.0), (8192, 333, 256, 512, 15.0)):
        h, w = torch.randn(N, D, device=dev).to(bf), (torch.randn(V, D, device=dev) * 3 / D ** 0.5).to(bf)
        y = torch.randint(0, V, (N,), device=dev)
        if N > 10: y[::7] = -100
        L = Lce(M, N, V, rows)
        L.bind(h, w, y, cap)
        runs = []
        for _ in range(2):
            poison(L.logits, L.loss, L.dh, L.dw, L.total, L.inverse)
            L.run()
            torch.cuda.synchronize()
            runs.append((L.total.clone(), L.dh.clone(), L.dw.clone()))
        loss, dh, dw = ref.linear_cross_entropy_grad(h.double(), w.double(), y, cap)
        e = dict(loss=abs(L.total.item() - loss.item()) / abs(loss.item()), dh=err(L.dh, dh), dw=err(L.dw, dw),
                 repeat=0.0 if all(torch.equal(a, b) for a, b in zip(*runs)) else 9.9)
        good &= gate(f"linear cross entropy N={N} V={V} D={D} cap {cap}", e, dict(loss=1e-3 if N > 10 else 1e-2, dh=1e-2, dw=1e-2, repeat=0))
    if args.check_only or not (good or args.force): return
    N, V, D = 8192, 131072, 4096
    h, w, y = torch.randn(N, D, device=dev).to(bf), (torch.randn(V, D, device=dev) * 0.02).to(bf), torch.randint(0, V, (N,), device=dev)
    for rows, cap in ((4096, 0.0), (4096, 15.0), (8192, 15.0)):
        L = Lce(M, N, V, rows)
        L.bind(h, w, y, cap)
        L.run()
        if rows == 4096 and cap == 0.0:
            z, x, f = L.logits, h[:rows], 2 * rows * V * D
            line("  product of the logits", timed(lambda: torch.mm(x, w.t(), out=z), n=10), flops=f)
            line("  product of dh", timed(lambda: torch.mm(z, w, out=L.dh[:rows]), n=10), flops=f)
            line("  product of dw", timed(lambda: torch.mm(z.t(), x, out=L.dw), n=10), flops=f)
            line("  product of dw, added", timed(lambda: L.dw.addmm_(z.t(), x), n=10), flops=f)
        line(f"  linear cross entropy row pass {rows} rows, cap {cap}", timed(L.parts[0][2], n=10), bytes_=4 * rows * V)
        line(f"linear cross entropy fwd+bwd, {rows} rows, cap {cap}", timed(L.run, n=20), flops=6 * N * V * D, goal=40, must=46)
        del L


def ceilings():
    a = torch.empty(1 << 31, dtype=torch.uint8, device=dev)
    b = torch.empty_like(a)
    line("ceiling: copy", timed(lambda: b.copy_(a), n=10), bytes_=2 * a.numel())
    x, y = torch.randn(8192, 8192, device=dev).to(bf), torch.randn(8192, 8192, device=dev).to(bf)
    line("ceiling: bf16 product 8192^3", timed(lambda: x @ y, n=20), flops=2 * 8192 ** 3)


if __name__ == "__main__":
    import argparse
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", nargs="*", default=[])
    ap.add_argument("--check-only", action="store_true")
    ap.add_argument("--small", action="store_true", help="short shapes only, for a memory checker; no timing")
    ap.add_argument("--force", action="store_true", help="time red kernels too (never for a published figure)")
    args = ap.parse_args()
    args.check_only |= args.small
    if not torch.cuda.is_available(): sys.exit("tiles: no CUDA device; nothing was checked")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(int(time.time()))
    print(torch.cuda.get_device_name(), torch.__version__, time.strftime("%Y-%m-%d"), flush=True)
    table = dict(gdn=gdn, index=index, attention=globals().get("attention"), lce=lce)
    if not args.check_only: ceilings()
    for name in args.what or table:
        begin = time.time()
        try:
            table[name](args)
        except Exception as e:
            import traceback
            traceback.print_exc()
            if "CUDA" in str(e) or "launch" in str(e) or "illegal" in str(e): sys.exit(1)
        print(f"     ({name} {time.time() - begin:.1f} s)", flush=True)
        torch.cuda.empty_cache()
