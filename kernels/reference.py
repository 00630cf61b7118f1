"""The chunked formulas of gated_delta_rule.cu in plain torch, as the kernels compute them.

`python3 reference.py` checks them against the token loop and autograd in 64 bits on the CPU.
"""
import torch

CHUNK = 64


def gated_delta_rule_tokens(q, k, v, g, b):
    """The definition (docs/ops.md), one head: q, k [T,K], v [T,V], g, b [T]."""
    s = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype, device=q.device)
    out = []
    for t in range(q.shape[0]):
        s = torch.exp(g[t]) * s
        e = b[t] * (v[t] - s.T @ k[t])
        s = s + torch.outer(k[t], e)
        out.append(s.T @ q[t])
    return torch.stack(out)


def _chunks(x, c):
    """[T,H,..] -> [H,N,C,..], padded with zeros to whole chunks."""
    t = x.shape[0]
    n = (t + c - 1) // c
    pad = torch.zeros(n * c - t, *x.shape[1:], dtype=x.dtype, device=x.device)
    x = torch.cat([x, pad]).reshape(n, c, *x.shape[1:])
    return x.movedim(2, 0)


def _prepare(q, k, v, g, b, c):
    q, k, v, g, b = (_chunks(x, c) for x in (q, k, v, g, b))
    G = g.cumsum(-1)
    low = torch.ones(c, c, dtype=torch.bool, device=q.device).tril()
    D = torch.where(low, torch.exp(G[..., :, None] - G[..., None, :]), torch.zeros((), dtype=q.dtype, device=q.device))
    kk = k @ k.mT
    L = (b[..., None] * D * kk).tril(-1)
    eye = torch.eye(c, dtype=q.dtype, device=q.device)
    M = torch.linalg.solve_triangular(eye + L, eye.expand_as(L), upper=False, unitriangular=True)
    P = D * (q @ k.mT)
    return q, k, v, g, b, G, D, kk, L, M, P


def gated_delta_rule(q, k, v, g, b, c=CHUNK, save=False):
    """Chunked forward, q, k, v [T,H,128], g, b [T,H] -> o [T,H,128]."""
    T, H = g.shape
    q, k, v, g, b, G, D, kk, L, M, P = _prepare(q, k, v, g, b, c)
    E = torch.exp(G)
    t = torch.exp(G[..., -1:] - G)
    S = torch.zeros(H, q.shape[-1], v.shape[-1], dtype=q.dtype, device=q.device)
    o, Ss, Ns = [], [], []
    for n in range(q.shape[1]):
        Ss.append(S)
        N = M[:, n] @ (b[:, n, :, None] * (v[:, n] - E[:, n, :, None] * (k[:, n] @ S)))
        o.append(E[:, n, :, None] * (q[:, n] @ S) + P[:, n] @ N)
        S = E[:, n, -1, None, None] * S + k[:, n].mT @ (t[:, n, :, None] * N)
        Ns.append(N)
    o = torch.stack(o, 1).movedim(0, 2).reshape(-1, H, v.shape[-1])[:T]
    return (o, Ss, Ns) if save else o


def gated_delta_rule_grad(q, k, v, g, b, do, c=CHUNK):
    """Chunked backward as the kernels compute it: dq, dk, dv, dg, db."""
    T, H = g.shape
    _, Ss, Ns = gated_delta_rule(q, k, v, g, b, c, save=True)
    do = _chunks(do, c)
    q, k, v, g, b, G, D, kk, L, M, P = _prepare(q, k, v, g, b, c)
    E, t = torch.exp(G), torch.exp(G[..., -1:] - G)
    dS = torch.zeros_like(Ss[0])
    out = [[], [], [], [], []]
    for n in reversed(range(q.shape[1])):
        col = lambda x: x[:, n, :, None]
        Q, K, V, dO, S, N = q[:, n], k[:, n], v[:, n], do[:, n], Ss[n], Ns[n]
        # the scan
        dN = P[:, n].mT @ dO + col(t) * (K @ dS)
        Y = M[:, n].mT @ dN
        dS_prev = E[:, n, -1, None, None] * dS + Q.mT @ (col(E) * dO) - K.mT @ (col(b) * col(E) * Y)
        # all the rest, chunk by chunk
        dK = col(t) * (N @ dS.mT)
        r = (dK * K).sum(-1)
        dG = -r
        dG_last = r.sum(-1) + E[:, n, -1] * (S * dS).sum((-1, -2))
        dL = -(Y @ N.mT).tril(-1)
        Z = dL * D[:, n]
        dB = (Z * kk[:, n]).sum(-1)
        BZ = col(b) * Z
        dA = dO @ N.mT
        dP = dA * D[:, n]
        both = dA * P[:, n] + BZ * kk[:, n]
        dG = dG + both.sum(-1) - both.sum(-2)
        dK = dK + (BZ + BZ.mT) @ K + dP.mT @ Q
        dQ = col(E) * (dO @ S.mT)
        dG = dG + (dQ * Q).sum(-1)
        dQ = dQ + dP @ K
        X = -col(E) * (Y @ S.mT)
        dK = dK + col(b) * X
        x = (X * K).sum(-1)
        dB = dB + x + (Y * V).sum(-1)
        dG = dG + b[:, n] * x
        dG[:, -1] += dG_last
        dg = dG.flip(-1).cumsum(-1).flip(-1)
        for slot, value in zip(out, (dQ, dK, col(b) * Y, dg, dB)):
            slot.insert(0, value)
        dS = dS_prev
    return tuple(torch.stack(x, 1).movedim(0, 2).flatten(0, 1)[:T] for x in out)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    T, H, D = 75, 2, 16
    mk = lambda *s: torch.randn(*s, dtype=torch.float64)
    nrm = torch.nn.functional.normalize
    q, k, v = nrm(mk(T, H, D), dim=-1), nrm(mk(T, H, D), dim=-1), mk(T, H, D)
    g, b, do = torch.nn.functional.logsigmoid(mk(T, H)), torch.rand(T, H, dtype=torch.float64), mk(T, H, D)
    xs = [x.requires_grad_(True) for x in (q, k, v, g, b)]
    o = torch.stack([gated_delta_rule_tokens(*(x[:, h] for x in xs)) for h in range(H)], 1)
    print("chunked forward against the token loop", (o - gated_delta_rule(*xs, c=16)).abs().max().item())
    o.backward(do)
    mine = gated_delta_rule_grad(*(x.detach() for x in xs), do, c=16)
    for name, a, x in zip(("dq", "dk", "dv", "dg", "db"), mine, xs):
        print("chunked", name, "against autograd", (a - x.grad).abs().max().item())
