"""How can the error of a gradient be bounded at any depth? The whole method on four ops.

    python docs/explain.py

NumGeom-AD compares the gradient that ran with a float64 evaluation of the same step, the reference,
and bounds the reference's own distance to the exact gradient. This file does the second, hard part
for one small family of networks, with NumPy and nothing of the package, so that it can be read from
top to bottom. Ops: product of matrices, sum, product of entries, tanh.
"""

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, Context
from typing import NamedTuple

import numpy as np

U = 2.0**-53  # unit roundoff of float64
TINY = 1e-300  # far below everything here; covers what underflow could add
ULPS = 2.0  # assumed of np.tanh: at most that many spacings off
FAILURE = 1e-9  # probability, over our own random probes, that the bound fails
PROBES = 10
MARGIN = 1.001  # covers the rounding of the few sums and quotients that make a bound


# -- 1. A training step is one list of calls, forward and backward alike ---------------------------


class Call(NamedTuple):
    """y = op(a, b); ta, tb: transpose that operand of a matrix product first."""

    y: str
    op: str
    a: str
    b: str = ""
    ta: bool = False
    tb: bool = False


Values = dict[str, np.ndarray]


def training_step(depth: int) -> list[Call]:
    """Loss 1/2 ||h_L W_L - t||^2 of h_i = tanh(h_{i-1} W_{i-1}), and its gradient by every W_i."""
    calls = []
    for i in range(depth):
        calls += [Call(f"z{i}", "mm", f"h{i}", f"W{i}"), Call(f"h{i + 1}", "tanh", f"z{i}")]
    calls += [Call("p", "mm", f"h{depth}", f"W{depth}"), Call("g", "add", "p", "minus_t")]
    g = "g"  # the cotangent of p, since d(1/2 r^2)/dr = r
    for i in range(depth, -1, -1):
        calls.append(Call(f"dW{i}", "mm", f"h{i}", g, ta=True))
        if i:
            calls += [
                Call(f"back{i}", "mm", g, f"W{i}", tb=True),
                Call(f"square{i}", "mul", f"h{i}", f"h{i}"),
                Call(f"negative{i}", "mul", f"square{i}", "minus_one"),
                Call(f"slope{i}", "add", f"negative{i}", "one"),
                Call(f"cotangent{i}", "mul", f"back{i}", f"slope{i}"),
            ]
            g = f"cotangent{i}"
    return calls


def operands(call: Call, values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Both operands as they enter."""
    a = values[call.a].T if call.ta else values[call.a]
    b = values[call.b] if call.b else a
    return a, b.T if call.tb else b


def evaluate(calls: list[Call], inputs: Values) -> Values:
    """Run the calls in the format of the inputs."""
    values = dict(inputs)
    for call in calls:
        a, b = operands(call, values)
        ops: dict[str, Callable[[], np.ndarray]] = {
            "mm": lambda a=a, b=b: a @ b,
            "add": lambda a=a, b=b: a + b,
            "mul": lambda a=a, b=b: a * b,
            "tanh": lambda a=a: np.tanh(a),
        }
        values[call.y] = ops[call.op]()
    return values


# -- 2. Every call makes a small error of its own --------------------------------------------------


def local_error(call: Call, values: Values) -> np.ndarray:
    """Bound d >= |computed - op(computed operands)|, entry by entry.

    + and * are rounded correctly: u |y|. A sum of n products in any order: gamma_n |A| |B|, with
    gamma_n = n u / (1 - n u) (Higham 2002, sec. 3.1).
    """
    a, b = operands(call, values)
    y = np.abs(values[call.y])
    if call.op == "mm":
        n = a.shape[1] + 2
        return n * U / (1 - n * U) * (np.abs(a) @ np.abs(b)) * (1 + 4 * n * U) + TINY
    return (2 * ULPS * U if call.op == "tanh" else U) * y * (1 + 4 * U) + TINY


# -- 3. Errors travel along the linearised step: e = A d -------------------------------------------


def push(
    calls: list[Call], values: Values, own: Callable[[str], np.ndarray]
) -> tuple[Values, Values]:
    """One forward pass with derivatives: e = A (w + rho); call y adds w = own(y) to its result.

    The pass rounds, too: rho is what it rounds at each call. A bound of |rho| is returned beside e.
    """
    e: Values = {}
    lost: Values = {}

    def change(name: str) -> np.ndarray:
        return e[name] if name in e else np.zeros_like(values[name])

    for call in calls:
        a, b = operands(call, values)
        moving = {name: change(name) for name in (call.a, call.b or call.a)}
        da, db = operands(call, moving)
        y = values[call.y]
        moved = {
            "mm": lambda da=da, db=db, a=a, b=b: da @ b + a @ db,
            "add": lambda da=da, db=db: da + db,
            "mul": lambda da=da, db=db, a=a, b=b: da * b + a * db,
            "tanh": lambda da=da, y=y: (1 - y * y) * da,
        }
        w = own(call.y)
        e[call.y] = moved[call.op]() + w
        da, db, a, b = (np.abs(x) for x in (da, db, a, b))
        sizes = {
            "mm": lambda da=da, db=db, a=a, b=b: da @ b + a @ db,
            "add": lambda da=da, db=db: da + db,
            "mul": lambda da=da, db=db, a=a, b=b: da * b + a * db,
            "tanh": lambda da=da: da,
        }
        n = 4 * ULPS + 8 + (2 * a.shape[1] if call.op == "mm" else 0)
        lost[call.y] = 2 * n * U * (sizes[call.op]() + np.abs(e[call.y]) + np.abs(w)) + TINY
    return e, lost


# -- 4. What linearisation leaves out is quadratic -------------------------------------------------


def second_order(call: Call, scale: Values) -> np.ndarray:
    """Q >= |op(x + e) - op(x) - op'(x) e| for all |e| <= scale, entry by entry.

    A product leaves E_A E_B. tanh leaves 1/2 max |tanh''| e^2, and |tanh''| <= 4 / (3 sqrt 3).
    """
    zero = np.zeros((1, 1))
    inner = {name: scale.get(name, zero) for name in (call.a, call.b or call.a)}
    a, b = operands(call, inner)
    exact = call.a not in scale or (call.b and call.b not in scale)
    if call.op == "tanh":
        return 0.5 * 0.77 * a * a
    if call.op == "add" or exact:  # an exact operand has no error to multiply with
        return np.zeros_like(scale[call.y]) if call.y in scale else zero
    return a @ b if call.op == "mm" else a * b


# -- 5. A yardstick for every entry ----------------------------------------------------------------


def choose_scale(calls: list[Call], values: Values, rng: np.random.Generator) -> Values:
    """S > 0, roughly the size of the error of each entry. Any S gives a valid theorem."""
    own = {c.y: local_error(c, values) for c in calls}
    samples = [
        push(calls, values, lambda y: own[y] * rng.standard_normal(own[y].shape))[0]
        for _ in range(8)
    ]
    scale: Values = {}
    for call in calls:
        typical = np.sqrt(np.mean([s[call.y] ** 2 for s in samples], axis=0))
        scale[call.y] = np.maximum(np.maximum(typical, np.median(typical)), own[call.y])
        # Large enough for the second-order term to be small beside it.
        scale[call.y] = np.maximum(scale[call.y], second_order(call, scale) / 1e-11)
    return scale


# -- 6. Three numbers ------------------------------------------------------------------------------


def norm(parts: Values) -> float:
    """2-norm of everything as one vector."""
    return math.sqrt(sum(float(np.sum(p * p)) for p in parts.values()))


def roundoff(calls: list[Call], values: Values, scale: Values) -> float:
    """Bound eta >= ||S^-1 d||."""
    return MARGIN * norm({c.y: local_error(c, values) / scale[c.y] for c in calls})


def curvature(calls: list[Call], scale: Values) -> float:
    """Bound K with ||S^-1 R(e)|| <= K/2 ||S^-1 e||^2.

    One call: K_i = max Q / s, twice that where a value is multiplied with itself or Q has its 1/2.
    Calls that share a parent add up: K^2 = max over parents of the sum of their K_i^2.
    """
    shares: dict[str, float] = {}
    for call in calls:
        k = float(np.max(second_order(call, scale) / scale[call.y]))
        k *= 2.0 if call.op == "tanh" or call.a == call.b else 1.0
        for parent in {call.a, call.b} - {""}:
            shares[parent] = shares.get(parent, 0.0) + k * k
    return MARGIN * math.sqrt(max(shares.values()))


def sensitivity(
    calls: list[Call], values: Values, scale: Values, rng: np.random.Generator
) -> dict[str, float]:
    """Bound beta >= ||S^-1 A S||, and ||P A S|| for every gradient P, by random probes.

    For Gaussian w, ||B w|| < eps ||B|| has probability at most 0.8 eps. Of k probes all are that
    unlucky with probability at most (0.8 eps)^k; eps is chosen for all bounds at once. A pass
    returns B (w + omega) with omega = rho / s, which takes at most its length from eps.
    """
    gradients = [c.y for c in calls if c.y.startswith("dW")]
    eps = (FAILURE / (1 + len(gradients))) ** (1 / PROBES) / 0.8
    found = dict.fromkeys(["beta", *gradients], 0.0)
    rounding = 0.0
    for _ in range(PROBES):
        e, lost = push(calls, values, lambda y: scale[y] * rng.standard_normal(scale[y].shape))
        rounding = max(rounding, MARGIN * norm({y: v / scale[y] for y, v in lost.items()}))
        found["beta"] = max(found["beta"], norm({y: v / scale[y] for y, v in e.items()}))
        for name in gradients:
            found[name] = max(found[name], norm({name: e[name]}))
    if not rounding < eps:
        raise ArithmeticError(f"no bound: the probe passes round {up(rounding)} of a probe")
    return {name: MARGIN * size / (eps - rounding) for name, size in found.items()}


# -- 7. The theorem --------------------------------------------------------------------------------


def radii(calls: list[Call], values: Values, seed: int = 0) -> dict[str, float]:
    """Bound ||exact - reference|| of every gradient, in the 2-norm.

    The exact errors solve e = A (R(e) - d). If h = 2 beta^2 K eta <= 1, the right-hand side maps
    the ball ||S^-1 e|| <= rho = 2 beta eta / (1 + sqrt(1 - h)) into itself, so the solution, of
    which there is only one, lies in it (Newton-Kantorovich), and
    ||P e|| <= ||P A S|| (eta + K rho^2 / 2). A kink (ReLU, max) would have to be farther than
    rho * scale from every entry; tanh has none.

    Raises:
        ArithmeticError: if h > 1; then nothing is known.
    """
    rng = np.random.default_rng(seed)
    scale = choose_scale(calls, values, rng)
    eta, k = roundoff(calls, values, scale), curvature(calls, scale)
    found = sensitivity(calls, values, scale, rng)
    beta = found.pop("beta")
    h = 2 * beta**2 * k * eta * MARGIN
    if not h <= 1:
        raise ArithmeticError(f"no bound: h = {up(h)} > 1: beta = {up(beta)}, K = {up(k)}")
    rho = 2 * beta * eta / (1 + math.sqrt(1 - h)) * MARGIN
    return {name: size * (eta + 0.5 * k * rho**2) * MARGIN for name, size in found.items()}


def example(depth: int, seed: int = 0, width: int = 16) -> tuple[list[Call], Values]:
    """A network with `depth` hidden layers and its data, in float32."""
    rng = np.random.default_rng(seed)
    sizes = [8, *[width] * depth, 3]
    inputs = {
        f"W{i}": rng.standard_normal((sizes[i], sizes[i + 1])) / math.sqrt(sizes[i])
        for i in range(depth + 1)
    }
    inputs |= {"h0": rng.standard_normal((5, 8)), "minus_t": rng.standard_normal((5, 3))}
    inputs |= {"one": np.ones((1, 1)), "minus_one": -np.ones((1, 1))}
    return training_step(depth), {k: v.astype(np.float32) for k, v in inputs.items()}


def up(x: float, digits: int = 3) -> str:
    """A number as it is printed: rounded upward, since a bound that is rounded down is none."""
    return str(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(x))


def main() -> None:
    """Print what a float32 gradient is worth, for networks of growing depth."""
    print("depth  observed error  certified bound   bound / observed")
    for depth in (1, 2, 5, 10, 20):
        calls, inputs = example(depth)
        computed = evaluate(calls, inputs)
        reference = evaluate(calls, {k: v.astype(np.float64) for k, v in inputs.items()})
        radius = radii(calls, reference)
        size = norm({n: reference[n] for n in radius})
        observed = norm({n: computed[n].astype(np.float64) - reference[n] for n in radius}) / size
        bound = observed + math.hypot(*radius.values()) / size
        print(f"{depth:5}  {up(observed):>14}  {up(bound):>15}  {up(bound / observed, 7):>17}")


if __name__ == "__main__":
    main()
