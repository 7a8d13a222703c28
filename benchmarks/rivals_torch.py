"""The same training by PyTorch: steps in one `torch.compile`, from the same weights, on the same examples, in float64.

On a GPU these are captured in a CUDA graph, many times one after the other, and the graph is replayed.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F


torch.set_default_dtype(torch.float64)

STEPS_AT_ONCE = 8
half_sum = lambda outputs, y: 0.5 * ((outputs - y) ** 2).sum()
half_mean = lambda outputs, y: 0.5 * ((outputs - y) ** 2).mean()
gelu = functools.partial(F.gelu, approximate="tanh")
# Hidden activation, output activation and criterion of `gritax.problems`.
FORMS = {
    "xor": (torch.sigmoid, torch.sigmoid, half_sum),
    "adder": (torch.sigmoid, torch.sigmoid, lambda outputs, y: half_sum(outputs, y) / 12),
    "digits": (gelu, lambda x: x, F.cross_entropy),
    "sine": (torch.tanh, lambda x: x, half_mean),
    "poisson": (torch.tanh, lambda x: x, half_mean),
}


def program(problem, examples, indices, optimizer, rate, momentum=0.9, device="cpu"):
    """A function without arguments: trains on the examples of each row of `indices`, all of them if it is a number of rows.

    It returns the parameters as a list of arrays, in the order of JAX's leaves. `optimizer`: `"sgd"`, `"momentum"` or `"adam"`.
    """
    if device != "cpu":  # it makes every call take longer
        torch.set_default_device(device)
    first, layers = _layers(problem)
    loss = _loss(problem.name, layers)
    x, y = map(_tensor, examples)
    y = y.long() if problem.name == "digits" else y
    whole = isinstance(indices, int)
    num_steps = indices if whole else len(indices)
    at_once = next(k for k in (STEPS_AT_ONCE, 4, 2, 1) if num_steps % k == 0)
    gradient = torch.func.grad(loss)
    update = functools.partial({"sgd": _sgd, "momentum": _momentum, "adam": _adam}[optimizer], rate, momentum)

    @torch.compile(dynamic=False, fullgraph=True)
    def several(params, memory, count, rows):
        for k in range(at_once):
            batch = (x, y) if whole else (x[rows[k]], y[rows[k]])
            count = count + 1
            params, memory = update(params, gradient(params, *batch), memory, count)
        return params, memory, count

    memory = tuple([torch.zeros_like(p) for p in first] for _ in range(MEMORIES[optimizer]))
    rows = torch.zeros(num_steps, 1) if whole else _tensor(indices).long()
    rows = rows.reshape(-1, at_once, *rows.shape[1:])
    if device != "cpu":
        return _replayed(several, first, memory, rows)

    def run():
        state = first, memory, torch.zeros(())
        with torch.no_grad():
            for part in parts:
                state = several(*state, part)
        return [p.numpy() for p in state[0]]

    parts = list(rows)
    return run


def _tensor(array):
    return torch.tensor(np.asarray(array))


def _replayed(several, params, memory, rows):
    """`run` on a GPU: a graph that changes the state where it is and counts the parts of `rows` itself."""
    first = [*params, *(each for leaves in memory for each in leaves), torch.zeros(())]
    held, at = [each.clone() for each in first], torch.zeros(1, dtype=torch.long)
    count, memories = len(params), len(memory)
    repeated = next(k for k in (32, 16, 8, 4, 2, 1) if len(rows) % k == 0)

    def body():
        for _ in range(repeated):
            kept = tuple(held[count * (k + 1) : count * (k + 2)] for k in range(memories))
            moved, kept, counted = several(held[:count], kept, held[-1], rows.index_select(0, at)[0])
            torch._foreach_copy_(held, [*moved, *(each for leaves in kept for each in leaves), counted])
            at.add_(1)

    def begin():
        torch._foreach_copy_(held, first)
        at.zero_()

    with torch.no_grad():
        replay = _captured(body, begin)

    def run():
        begin()
        for _ in range(len(rows) // repeated):
            replay()
        return [p.cpu().numpy() for p in held[:count]]

    return run


def _captured(body, begin):
    """`body` as a graph, after it has run a few times on a stream of its own, as capturing asks."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            begin()
            body()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        body()
    return graph.replay


def _layers(problem):
    """(leaves in JAX's order, their places as (weights, biases or None) of each layer)."""
    import jax

    leaves, structure = jax.tree.flatten(problem.state.params)
    places = jax.tree.unflatten(structure, list(range(len(leaves))))
    places = list(places.values()) if isinstance(places, dict) else places
    layers = [(each["w"], each["b"]) if isinstance(each, dict) else (each, None) for each in places]
    return [_tensor(leaf) for leaf in leaves], layers


def _loss(name, layers):
    hidden, last, criterion = FORMS[name]

    def outputs(params, x):
        for k, (w, b) in enumerate(layers):
            x = x @ params[w] if b is None else torch.addmm(params[b], x, params[w])
            x = last(x) if k == len(layers) - 1 else hidden(x)
        return x

    def laplacian(params, x):
        """Of `x (1 - x) y (1 - y) net(x, y)`, tanh layers differentiated twice on the way."""
        total, (u, v) = 0, (x[:, :1], x[:, 1:])
        for axis, (near, far) in enumerate(((u, v), (v, u))):
            value, slope, bend = x, torch.zeros_like(x) + torch.eye(2)[axis], torch.zeros_like(x)
            for k, (w, b) in enumerate(layers):
                value, slope, bend = torch.addmm(params[b], value, params[w]), slope @ params[w], bend @ params[w]
                if k < len(layers) - 1:
                    value = torch.tanh(value)
                    steep = 1 - value**2
                    slope, bend = steep * slope, steep * bend - 2 * value * steep * slope**2
            total = total + far * (1 - far) * (near * (1 - near) * bend + 2 * (1 - 2 * near) * slope - 2 * value)
        return total[:, 0]

    forward = laplacian if name == "poisson" else outputs
    return lambda params, x, y: criterion(forward(params, x), y)


MEMORIES = {"sgd": 0, "momentum": 1, "adam": 2}


def _sgd(rate, momentum, params, gradients, memory, count):
    return [p - rate * g for p, g in zip(params, gradients, strict=True)], memory


def _momentum(rate, momentum, params, gradients, memory, count):
    trace = [momentum * m + g for m, g in zip(memory[0], gradients, strict=True)]
    return [p - rate * m for p, m in zip(params, trace, strict=True)], (trace,)


def _adam(rate, momentum, params, gradients, memory, count):
    first = [0.9 * m + 0.1 * g for m, g in zip(memory[0], gradients, strict=True)]
    second = [0.999 * v + 0.001 * g * g for v, g in zip(memory[1], gradients, strict=True)]
    a, b = 1 - 0.9**count, 1 - 0.999**count
    moved = [p - rate * (m / a) / (torch.sqrt(v / b) + 1e-8) for p, m, v in zip(params, first, second, strict=True)]
    return moved, (first, second)
