"""The losses of `keras_distill` once more, in plain PyTorch.

For `benchmark_losses.py`, which checks that both give the same values and
gradients, and compares how long they take. Written from the papers' formulas as
one would in NumPy: no checks, no options, and no fused losses of
`torch.nn.functional`. As in the library, a class that both rule out with a
logit of minus infinity counts for nothing.

`t` is the teacher's tensor, `s` the student's, `y` labels. Logits are `(batch,
classes)`, feature maps `(batch, channels, height, width)`, vectors `(batch,
features)`; each gives the mean over the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Logits


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1).mean()


def soft_targets(t: Tensor, s: Tensor, temperature: Any = 4.0) -> Tensor:
    log_p = F.log_softmax(t / temperature, -1)
    log_q = F.log_softmax(s / temperature, -1)
    return temperature**2 * divergence(log_p, log_q)


def binary_soft_targets(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    t, s = t / temperature, s / temperature
    parts = []
    for log_p, log_q in (
        (F.logsigmoid(t), F.logsigmoid(s)),
        (F.logsigmoid(-t), F.logsigmoid(-s)),
    ):
        p = log_p.exp()
        parts.append(torch.where(p == 0, 0.0, p * (log_p - log_q)))
    return temperature**2 * (parts[0] + parts[1]).mean()


def logit_matching(t: Tensor, s: Tensor) -> Tensor:
    return (t - s).square().sum(-1).mean() / 2


def without_label(x: Tensor, y: Tensor) -> Tensor:
    others = F.one_hot(y, x.shape[-1]) == 0
    return x[others].view(len(x), -1)


def decoupled(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    sides = []
    for x in (t / 4.0, s / 4.0):
        rest = without_label(x, y)
        label = x.gather(1, y[:, None])
        two = torch.cat([label, rest.logsumexp(-1, keepdim=True)], -1)
        sides.append((F.log_softmax(two, -1), F.log_softmax(rest, -1)))
    (b_t, r_t), (b_s, r_s) = sides
    return 16.0 * (divergence(b_t, b_s) + 8.0 * divergence(r_t, r_s))


def normalized(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(t, -1).gather(1, y[:, None])
    log_q = F.log_softmax(s, -1).gather(1, y[:, None])
    rest = F.cross_entropy(
        without_label(s, y), F.softmax(without_label(t, y), -1)
    )
    return 1.5 * rest - (p * log_q).mean()


def weighted(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    behind, ahead = (
        -F.log_softmax(x, -1).gather(1, y[:, None])[:, 0] for x in (s, t)
    )
    weight = 1 - torch.exp(-behind / (ahead + 1e-7)).detach()
    p, log_q = F.softmax(t / 4.0, -1), F.log_softmax(s / 4.0, -1)
    soft = -torch.where(p == 0, 0.0, p * log_q).sum(-1)
    return 16.0 * (weight * soft).mean()


def one_for_all(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    label = F.one_hot(y, t.shape[-1])
    target = (F.softmax(t, -1) + label) ** 1.5 - label
    shares = torch.where(target == 0, 0.0, target * F.log_softmax(s, -1))
    return -shares.sum(-1).mean()


def corrected_teacher(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(t, -1)
    most, decision = p.max(-1)
    own = p.gather(1, y[:, None])[:, 0]
    wrong = (most - own + 0.2) / (1 + most - own + 1e-7)
    right = (1 - own).clamp(max=0.2) / (1 - own + 1e-7)
    mix = torch.where(decision == y, right, wrong)[:, None]
    target = (1 - mix) * p + mix * F.one_hot(y, t.shape[-1])
    return divergence(target.log(), F.log_softmax(s, -1))


def teacher_free(t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    # Of the label's and of any other class's two numbers: over all classes,
    # rounding adds up.
    classes = t.shape[-1]
    label = math.log(0.99) / 20.0
    other = math.log(0.01 / (classes - 1)) / 20.0
    total = math.log(math.exp(label) + (classes - 1) * math.exp(other))
    label, other = label - total, other - total
    log_q = F.log_softmax(s / 20.0, -1)
    own = log_q.gather(1, y[:, None])[:, 0]
    every = math.exp(other) * (other - log_q).sum(-1)
    change = math.exp(label) * (label - own) - math.exp(other) * (other - own)
    return 400.0 * (every + change).mean()


def hard_targets(t: Tensor, s: Tensor) -> Tensor:
    decision = t.argmax(-1, keepdim=True)
    return -F.log_softmax(s, -1).gather(1, decision).mean()


def curriculum(t: Tensor, s: Tensor, theta: Tensor) -> Tensor:
    reversed_theta = 2 * theta.detach() - theta
    return soft_targets(t, s, 1 + 20 * reversed_theta.sigmoid())


def pearson(a: Tensor, b: Tensor, axis: int) -> Tensor:
    a, b = (x - x.mean(axis, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, axis).mean()


def logit_correlation(t: Tensor, s: Tensor) -> Tensor:
    p, q = F.softmax(t, -1), F.softmax(s, -1)
    return 2 - pearson(p, q, 1) - pearson(p, q, 0)


def standardized(t: Tensor, s: Tensor) -> Tensor:
    t, s = (
        (x - x.mean(-1, keepdim=True)) / (1e-7 + x.std(-1, keepdim=True))
        for x in (t, s)
    )
    return soft_targets(t, s, 2.0)


def multi_level(t: Tensor, s: Tensor) -> Tensor:
    total = 0.0
    for temperature in (4.0, 3.0, 5.0, 2.0, 6.0):
        p, q = F.softmax(t / temperature, -1), F.softmax(s / temperature, -1)
        classes = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
        examples = (p @ p.T - q @ q.T).square().sum() / len(p)
        total = total + soft_targets(t, s, temperature) + classes + examples
    return total


def jensen_shannon(t: Tensor, s: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(t, -1), F.log_softmax(s, -1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (divergence(log_p, log_m) + divergence(log_q, log_m)) / 2


def skewed(t: Tensor, s: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(t, -1), F.log_softmax(s, -1)
    mixed = torch.logaddexp(log_p + math.log(0.1), log_q + math.log(0.9))
    return divergence(log_p, mixed)


def total_variation(t: Tensor, s: Tensor) -> Tensor:
    return (F.softmax(t, -1) - F.softmax(s, -1)).abs().sum(-1).mean() / 2


def sorted_probabilities(t: Tensor, s: Tensor) -> Tensor:
    p, q = (F.softmax(x, -1).sort(-1).values for x in (t, s))
    return (p - q).abs().sum(-1).mean()


def sparse(t: Tensor, s: Tensor, k: int) -> Tensor:
    indices = t.topk(k, -1).indices
    sides = []
    for x in (t, s):
        kept = x.gather(1, indices)
        others = x.scatter(1, indices, -math.inf)
        rest = others.logsumexp(-1, keepdim=True)
        sides.append(F.log_softmax(torch.cat([kept, rest], -1), -1))
    return divergence(*sides)


def sampled(t: Tensor, s: Tensor, drawn: Tensor | None = None) -> Tensor:
    if drawn is None:
        drawn = F.softmax(t / 1.0, -1).multinomial(50, replacement=True)
    return -F.log_softmax(s, -1).gather(1, drawn).mean()


# Layers


def hint(t: Tensor, s: Tensor) -> Tensor:
    return mean_square(s, t)


def attention_transfer(t: Tensor, s: Tensor) -> Tensor:
    t, s = (F.normalize(x.square().mean(1).flatten(1)) for x in (t, s))
    return mean_square(s, t)


def channel_wise(t: Tensor, s: Tensor) -> Tensor:
    log_p, log_q = (F.log_softmax(x.flatten(2), -1) for x in (t, s))
    return divergence(log_p, log_q)


def flow_of_solution(t: Sequence[Tensor], s: Sequence[Tensor]) -> Tensor:
    total = 0.0
    for i, j in itertools.pairwise(range(len(t))):
        flows = [
            torch.einsum("bchw,bdhw->bcd", x[i], x[j]) / x[i][0, 0].numel()
            for x in (t, s)
        ]
        total = total + mean_square(*flows)
    return total


def inter_channel(t: Tensor, s: Tensor) -> Tensor:
    gram_t, gram_s = (
        F.normalize(x @ x.transpose(1, 2), dim=-1)
        for x in (t.flatten(2), s.flatten(2))
    )
    return (gram_t - gram_s).square().sum() / (len(t) * t.shape[1])


def neuron_selectivity(t: Tensor, s: Tensor) -> Tensor:
    t, s = (F.normalize(x.flatten(2), dim=-1) for x in (t, s))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(t, s)


def pearson_maps(t: Tensor, s: Tensor) -> Tensor:
    axes = (0, 2, 3)
    t, s = (
        (x - x.mean(axes, keepdim=True)) / (x.std(axes, keepdim=True) + 1e-6)
        for x in (t, s)
    )
    return mean_square(s, t) / 2


def similarity(t: Tensor, s: Tensor) -> Tensor:
    t, s = (F.normalize(x @ x.T) for x in (t.flatten(1), s.flatten(1)))
    return mean_square(s, t)


def correlation(t: Tensor, s: Tensor, embed_t: Any, embed_s: Any) -> Tensor:
    difference = (embed_t(t) - embed_s(s)).abs()
    return (difference[:-1] * difference[1:]).sum(-1).mean()


def kernel_congruence(t: Tensor, s: Tensor) -> Tensor:
    kernels = []
    for x in (F.normalize(t), F.normalize(s)):
        products = 0.8 * (x @ x.T)
        kernels.append(math.exp(-0.8) * (1 + products + products.square() / 2))
    return mean_square(*kernels)


def relational_distance(t: Tensor, s: Tensor) -> Tensor:
    apart = 1 - torch.eye(len(t))
    distances = []
    for x in (t, s):
        squares = x.square().sum(-1)
        squares = squares[:, None] + squares - 2 * (x @ x.T)
        d = squares.clamp(min=1e-12).sqrt() * apart
        distances.append(d / d[d > 0].mean())
    return F.smooth_l1_loss(distances[1], distances[0])


def relational_angle(t: Tensor, s: Tensor) -> Tensor:
    angles = []
    for x in (t, s):
        edges = F.normalize(x[None] - x[:, None], dim=-1)
        angles.append(edges @ edges.transpose(1, 2))
    return F.smooth_l1_loss(angles[1], angles[0])


def probabilistic(t: Tensor, s: Tensor) -> Tensor:
    probabilities = []
    for x in (t, s):
        unit = F.normalize(x)
        near = (unit @ unit.T + 1) / 2
        probabilities.append(near / near.sum(-1, keepdim=True))
    p, q = probabilities
    return (p * ((p + 1e-7).log() - (q + 1e-7).log())).mean()


def variational(t: Tensor, s: Tensor, regressor: Any, raw: Tensor) -> Tensor:
    variance = (F.softplus(raw) + 1e-5)[:, None, None]
    squares = (regressor(s) - t).square()
    return (squares / variance + variance.log()).mean() / 2


def contrastive(t: Tensor, s: Tensor, embed_t: Any, embed_s: Any) -> Tensor:
    scores = F.normalize(embed_s(s)) @ F.normalize(embed_t(t)).T / 0.07
    own = torch.arange(len(scores))
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


def softmax_regression(t: Tensor, s: Tensor, connect: Any, head: Any) -> Tensor:
    t, s = t.mean((2, 3)), connect(s).mean((2, 3))
    return mean_square(s, t) + mean_square(head(s), head(t))


def semantic_calibration(
    t: Sequence[Tensor],
    s: Sequence[Tensor],
    projectors: Sequence[Any],
    queries: Sequence[Any],
    keys: Sequence[Any],
) -> Tensor:
    def embedded(layers: Sequence[Any], maps: Sequence[Tensor]) -> Tensor:
        vectors = [F.normalize(x.mean((2, 3))) for x in maps]
        made = [f(x) for f, x in zip(layers, vectors, strict=True)]
        return F.normalize(torch.stack(made, 1), dim=-1)

    scores = embedded(queries, s) @ embedded(keys, t).transpose(1, 2)
    pairs = itertools.product(s, t)
    distances = [
        (projector(x) - target).square().mean((1, 2, 3))
        for projector, (x, target) in zip(projectors, pairs, strict=True)
    ]
    distance = torch.stack(distances, -1).view(scores.shape)
    return (F.softmax(scores, -1) * distance).sum(-1).mean()


def hierarchical(t: Tensor, s: Tensor) -> Tensor:
    value, total, share = mean_square(s, t), 1.0, 1.0
    for size in (4, 2, 1):
        share /= 2
        pooled = [F.adaptive_avg_pool2d(x, size) for x in (s, t)]
        value = value + share * mean_square(*pooled)
        total += share
    return value / total


def knowledge_review(
    t: Sequence[Tensor],
    s: Sequence[Tensor],
    reducers: Sequence[Any],
    attentions: Sequence[Any],
    translators: Sequence[Any],
) -> Tensor:
    total, deeper = 0.0, None
    for i in reversed(range(len(s))):
        x = reducers[i](s[i])
        if deeper is not None:
            share = attentions[i](torch.cat([x, deeper], 1))
            x = share[:, :1] * x + share[:, 1:] * deeper
        deeper = x
        total = total + hierarchical(t[i], translators[i](x))
    return total


def masked_generation(
    t: Tensor, s: Tensor, generator: Any, drawn: Tensor | None = None
) -> Tensor:
    if drawn is None:
        drawn = torch.rand(*s.shape[:2], 1, 1)
    made = generator(s * (drawn >= 0.15))
    return (made - t).square().sum() / len(t)


def class_attention(t: Tensor, s: Tensor) -> Tensor:
    t, s = (
        F.normalize(F.adaptive_avg_pool2d(x, 2).flatten(2), dim=-1)
        for x in (t, s)
    )
    return mean_square(s, t)


def factor_transfer(
    t: Tensor, s: Tensor, paraphraser: Any, translator: Any
) -> Tensor:
    with torch.no_grad():
        t = paraphraser(t)
    t, s = (
        F.normalize(x.square().mean(1).flatten(1)) for x in (t, translator(s))
    )
    return (t - s).abs().mean()


def activation_boundary(t: Tensor, s: Tensor) -> Tensor:
    return F.relu(1 - torch.where(t > 0, s, -s)).square().sum() / len(t)


def overhaul(t: Tensor, s: Tensor, margin: Tensor) -> Tensor:
    target = torch.maximum(t, margin[:, None, None])
    counts = (s > target) | (target > 0)
    return ((s - target).square() * counts).sum() / len(t)
