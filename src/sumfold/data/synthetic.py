"""Synthetic federations for tests and papers.

Synthetic(α, β) of Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated optimization in heterogeneous networks",
MLSys 2020, §5.1 and Appendix C.1. For every client k:

    y = argmax(softmax(W_k x + b_k)),   W_k[i, j] ~ N(u_k, 1),  b_k[i] ~ N(u_k, 1),  u_k ~ N(0, α)
    x ~ N(v_k, Σ),  Σ diagonal with Σ_jj = j^-1.2,   v_k[j] ~ N(B_k, 1),  B_k ~ N(0, β)

α says how much the clients' models differ, β how much their data do. Synthetic-IID has one W and b for all, drawn from
N(0, 1), and v_k = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sumfold.data.assemble import from_arrays
from sumfold.data.federation import Federation
from sumfold.errors import DataError, user_facing

_FEATURES, _CLASSES = 60, 10


@user_facing
def synthetic_linear(
    alpha: float | Any = 1.0,
    beta: float | Any = 1.0,
    *,
    clients: int | Any = 30,
    iid: bool | Any = False,
    seed: int | Any = 0,
) -> Federation:
    """Synthetic(α, β): clients whose linear models and whose data differ, as much as `alpha` and `beta` say.

    x is float32[n, 60], y int32[n] with the classes 0 … 9. Sizes are 50 + lognormal(4, 2), rounded down: a median of
    about 105 and a few clients of thousands. A client depends on the seed and its number alone, so fewer clients are
    the first of more.

    Where the paper leaves a choice: α and β are variances, as in N(v_k, Σ); its published program takes them as
    standard deviations, which is the same for 0 and 1 and differs at 0.5. The paper splits each client's rows 9 to 1
    into training and test: ``synthetic_linear(1, 1).split(0.9)``. The random numbers are this library's own.

    Args:
        alpha: at least 0; 0, 0.5 and 1 in the paper.
        beta: at least 0.
        clients: how many; ids are 0 … clients−1.
        iid: one model and one distribution for all; alpha and beta are then not used.
        seed: another seed gives another federation.

    Raises:
        DataError: a parameter out of range (SF-DATA-110).

    Reference:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated optimization in heterogeneous networks",
        MLSys 2020, §5.1 and Appendix C.1.

    Example:
        >>> synthetic_linear(0.5, 0.5, clients=3)
        Federation(3 clients, 241 examples, x float32[60], y int32)
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
            raise _parameter(name, value, "a number of at least 0")
    for name, number, least in (("clients", clients, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise _parameter(name, number, f"a whole number of at least {least}")
    if not isinstance(iid, bool | np.bool_):
        raise _parameter("iid", iid, "True or False")
    shared = np.random.Generator(np.random.Philox(np.random.SeedSequence(int(seed))))
    common = shared.normal(size=(_CLASSES, _FEATURES)), shared.normal(size=_CLASSES)
    deviation = np.arange(1, _FEATURES + 1) ** -0.6  # the root of Σ_jj
    xs, ys = [], []
    for k in range(int(clients)):
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([int(seed), k])))
        rows = 50 + int(draw.lognormal(4.0, 2.0))
        u, B = draw.normal(0.0, np.sqrt(alpha)), draw.normal(0.0, np.sqrt(beta))
        W, b, v = draw.normal(u, size=(_CLASSES, _FEATURES)), draw.normal(u, size=_CLASSES), draw.normal(B, size=60)
        if iid:
            (W, b), v = common, np.zeros(_FEATURES)
        x = (v + deviation * draw.normal(size=(rows, _FEATURES))).astype(np.float32)
        # softmax keeps the order; labels belong to the rows as they are handed out, in float32
        ys.append(np.argmax(x.astype(np.float64) @ W.T + b, axis=1).astype(np.int32))
        xs.append(x)
    offsets = np.concatenate([[0], np.cumsum([len(y) for y in ys])])
    return from_arrays(np.concatenate(xs), np.concatenate(ys), None, None, offsets)


def _parameter(name: str, value: object, needed: str) -> DataError:
    return DataError("SF-DATA-110", f"{name}={value!r}", needed, f"choose another {name}")
